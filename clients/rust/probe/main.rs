//! What the tests in Python drive: `probe vectors`, `probe ask ADDRESS...`, `probe load FILE CONNECTIONS ADDRESS...`,
//! `probe bench OPEN CONNECTIONS THREADS SECONDS ADDRESS`. Words come as lines, and go as lines.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use hsmcore_client::wire::{self, Said};
use hsmcore_client::{Client, Error, Key, Kind, Operation, Options, Pending, Signature, Stream};

const CALLERS: usize = 12;
const WINDOW: usize = 8;

fn hex(data: &[u8]) -> String {
    data.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string grows");
        text
    })
}

fn bytes(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex")).collect()
}

fn kind(name: &str) -> Kind {
    *Kind::ALL.iter().find(|one| one.name() == name).expect("a kind")
}

fn operation(name: &str) -> Operation {
    *Operation::ALL.iter().find(|one| one.name() == name).expect("an operation")
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

fn after(ms: &str) -> Instant {
    Instant::now() + Duration::from_millis(number(ms).expect("milliseconds"))
}

fn lines() -> impl Iterator<Item = Vec<String>> {
    io::stdin().lock().lines().map(|line| line.expect("a line").split('\t').map(String::from).collect())
}

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    match words[0].as_str() {
        "vectors" => vectors(),
        "ask" => ask(&words[1..]),
        "load" => load(&words[1], &words[2], &words[3..]),
        "bench" => bench(&words[1..5], &words[5..]),
        other => panic!("no command {other}"),
    }
}

// ---- golden vectors --------------------------------------------------------------------------------------------------

/// For each line the bytes of the frame that it describes, or what the bytes in it say.
fn vectors() {
    for words in lines() {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let said = match words[..] {
            ["read", data] => read(&bytes(data)).unwrap_or_else(|error| format!("refused\t{}", error.text)),
            ["make", request, slot, again, ref fields @ ..] => {
                let mut made = match *fields {
                    ["HELLO", nonce, program] => wire::hello(&bytes(nonce).try_into().expect("16 bytes"), program),
                    ["SIGN", name, timeout, position, version, message] => {
                        let mut made = wire::sign(&bytes(message), kind(name), number(position));
                        for (at, text) in [(wire::VERSION_AT, version), (wire::TIMEOUT_AT, timeout)] {
                            wire::stamp(&mut made, at, text.parse::<u32>().expect("a number").to_le_bytes());
                        }
                        if again == "again" {
                            made[wire::FLAGS_AT] |= wire::AGAIN;
                        }
                        made
                    }
                    ["MANAGE", name, id] => wire::manage(operation(name), id).expect("a frame"),
                    ["PING", data] => wire::ping(&bytes(data)),
                    ["CANCEL"] => wire::about(wire::CANCEL, 0),
                    ["ACK"] => wire::about(wire::ACK, 0),
                    _ => panic!("{fields:?}"),
                };
                wire::stamp(&mut made, wire::REQUEST_AT, number(request).expect("a request").to_le_bytes());
                wire::stamp(&mut made, wire::SLOT_AT, slot.parse::<u16>().expect("a slot").to_le_bytes());
                hex(&made)
            }
            _ => panic!("{words:?}"),
        };
        println!("{said}");
    }
}

fn key(one: &Key) -> String {
    let Key { slot, version, current, algorithm, id, public_key, kinds, .. } = one;
    format!("{slot} {version} {current} {} {id} {} {kinds}", algorithm.name(), hex(public_key))
}

fn keys(all: &[Key]) -> String {
    all.iter().map(key).collect::<Vec<_>>().join("|")
}

/// What all frames say; a stream may end within one.
fn read(data: &[u8]) -> Result<String, Error> {
    let (mut at, mut said) = (0, Vec::new());
    while let Ok((frame, size)) = wire::cut(&data[at..])? {
        let meaning = match frame.read()? {
            Said::Welcome(one) => {
                let limits = format!("{} {} {} {}", one.credits, one.message_bytes, one.batch, one.remember_ms);
                format!("{} {limits} {} {} {}", hex(&one.instance), one.client, one.slots.join(","), keys(&one.keys))
            }
            Said::Signed(Signature { version, level, audit_seq, bytes, .. }) => {
                let record = audit_seq.map_or("-".into(), |seq| seq.to_string());
                format!("{version} {} {record} {}", level.name(), hex(&bytes))
            }
            Said::Pong(data) => hex(data),
            Said::Error(one) => {
                let flags = format!("{} {} {}", one.retryable, one.maybe_signed, one.retry_after_ms);
                format!("{flags} {} {} {}", one.code.name(), one.holder, one.text)
            }
            Said::Keys(all) => keys(&all),
            Said::Credit(credits) => credits.to_string(),
            Said::Goaway(left, reason) => format!("{left} {reason}"),
            Said::Done(text) => text,
            Said::Other => "-".into(),
        };
        said.push(format!("{}\t{}\t{}\t{meaning}", frame.kind, frame.slot, frame.request).replace('\n', "\\n"));
        at += size;
    }
    Ok(said.join("\t"))
}

// ---- a client --------------------------------------------------------------------------------------------------------

/// A stream that cannot be halved, and holds bytes back, as one of TLS does; each byte is changed on its way.
struct Veiled(TcpStream);

impl Read for Veiled {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = self.0.read(buffer)?;
        buffer[..size].iter_mut().for_each(|byte| *byte ^= 0x5a);
        Ok(size)
    }
}

impl Write for Veiled {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(&data.iter().map(|byte| byte ^ 0x5a).collect::<Vec<_>>())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn connect(connections: usize, addresses: &[String]) -> Result<Client, Error> {
    let mut options = Options { connections, max_backoff: Duration::from_millis(100), ..Options::default() };
    if let Some(ms) = env::var("PROBE_PING_MS").ok().and_then(|text| number(&text)) {
        options.ping = Duration::from_millis(ms);
    }
    if addresses.iter().any(|one| one.starts_with("tcp:")) {
        options.dial = Some(Arc::new(|address| {
            let socket = TcpStream::connect(address.trim_start_matches("tcp:"))?;
            Stream::over_tcp(Veiled(socket.try_clone()?), socket)
        }));
    }
    if env::var("PROBE_VERIFIER").is_ok() {
        // As verifiable() of the tests makes them.
        options.verifier = Some(Arc::new(|key, message, signature| {
            let mut wanted = [&key.public_key[..4], message].concat();
            wanted.resize(64, 0);
            wanted == signature
        }));
    }
    Client::connect(addresses, options)
}

fn told(outcome: &Result<Signature, Error>) -> String {
    match outcome {
        Ok(one) => {
            let key = one.key.as_ref().map_or("-".into(), |key| hex(&key.public_key));
            format!("ok\t{}\t{key}\t{}", hex(&one.bytes), one.level.name())
        }
        Err(error) => {
            let Error { code, retryable, maybe_signed, holder, text, .. } = error;
            format!("error\t{}\t{retryable}\t{maybe_signed}\t{holder}\t{}", code.name(), text.replace('\n', " "))
        }
    }
}

/// Words: `sign ID KEY KIND POSITION MS MESSAGE`, `cancel ID`, `take ID`, `manage KEY OPERATION ID MS`, `keys KEY`, `state`,
/// `verify KEY MESSAGE SIGNATURE`, `close`. A signature is told in a line of its own when it comes.
fn ask(addresses: &[String]) {
    let connections = env::var("PROBE_CONNECTIONS").map_or(1, |text| text.parse().expect("a number"));
    let client = match connect(connections, addresses) {
        Ok(client) => Arc::new(client),
        Err(error) => return println!("{}", told(&Err(error))),
    };
    println!("connected");
    let (mut held, mut waiting) = (HashMap::new(), Vec::new());
    for words in lines() {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["sign" | "hold", id, key, name, position, ms, message] => {
                let asked = client.submit(key, &bytes(message), kind(name), number(position), after(ms));
                match asked {
                    Err(error) => println!("{id}\t{}", told(&Err(error))),
                    Ok(pending) if words[0] == "hold" => drop(held.insert(id.to_string(), pending)),
                    Ok(pending) => {
                        let id = id.to_string();
                        waiting.push(thread::spawn(move || println!("{id}\t{}", told(&pending.wait()))));
                    }
                }
            }
            ["cancel", id] => held.remove(id).expect("it is held").cancel(),
            ["manage", key, name, id, ms] => match client.manage(key, operation(name), id, after(ms)) {
                Ok(text) => println!("done\t{text}"),
                Err(error) => println!("{}", told(&Err(error))),
            },
            ["keys", name] => {
                println!("{}", client.keys(name).iter().map(|one| key(one)).collect::<Vec<_>>().join("|"))
            }
            ["state"] => {
                let state = client.state();
                println!("{}\t{}\t{}\t{}", state.address, state.connections, state.client, state.open);
            }
            ["verify", key, message, signature] => {
                println!("{}", client.verify(key, &bytes(message), &bytes(signature)).expect("a verifier"));
            }
            ["close"] => break,
            _ => panic!("{words:?}"),
        }
    }
    match Arc::try_unwrap(client) {
        Ok(client) => client.close(),
        Err(_) => panic!("the client is used"),
    }
    waiting.into_iter().for_each(|one| one.join().expect("no panic"));
    println!("closed");
}

/// Sign without end from several threads, half of them with many open. Words: `wait N`, `rotate`, `end`. Each outcome is a
/// line of the file.
fn load(file: &str, connections: &str, addresses: &[String]) {
    let client = connect(connections.parse().expect("a number"), addresses).expect("a gateway");
    let out = Mutex::new(BufWriter::new(fs::File::create(file).expect("a file")));
    let (going, signed, made) = (AtomicBool::new(true), AtomicUsize::new(0), AtomicUsize::new(0));
    let note = |message: &str, outcome: &Result<Signature, Error>| {
        signed.fetch_add(usize::from(outcome.is_ok()), SeqCst);
        writeln!(out.lock().expect("a lock"), "{message}\t{}", told(outcome)).expect("a disk");
    };
    let caller = &|name: usize| {
        let mut open: VecDeque<(String, Pending)> = VecDeque::new();
        for count in 0.. {
            let most = if name % 2 == 0 { WINDOW } else { 1 };
            let on = going.load(SeqCst);
            while open.len() >= most || !on && !open.is_empty() {
                let (message, pending) = open.pop_front().expect("one is open");
                note(&message, &pending.wait());
            }
            if !on {
                return;
            }
            made.fetch_add(1, SeqCst);
            let message = format!("rust {name}, message {count}");
            match client.submit("default", message.as_bytes(), Kind::Unsaid, None, after("120000")) {
                Ok(pending) => open.push_back((message, pending)),
                Err(error) => note(&message, &Err(error)),
            }
        }
    };
    thread::scope(|scope| {
        for name in 0..CALLERS {
            scope.spawn(move || caller(name));
        }
        for words in lines() {
            let (word, count) = words[0].split_once(' ').unwrap_or((&words[0], "0"));
            if word == "rotate" {
                let id = client.manage("default", Operation::Generate, "", after("60000")).expect("a key");
                client.manage("default", Operation::SetCurrent, &id, after("60000")).expect("a change");
            }
            let until = signed.load(SeqCst) + count.parse::<usize>().expect("a number");
            while signed.load(SeqCst) < until {
                thread::sleep(Duration::from_millis(2));
            }
            if word == "end" {
                break;
            }
            println!("done");
        }
        going.store(false, SeqCst);
    });
    client.close();
    out.into_inner().expect("a lock").flush().expect("a disk");
    println!("{}", made.load(SeqCst));
}

/// The processor time of this process so far.
fn processor() -> Duration {
    let text = fs::read_to_string("/proc/self/stat").expect("Linux");
    let after_name: Vec<&str> = text.rsplit(')').next().expect("its end").split_whitespace().collect();
    Duration::from_millis(10)
        * (after_name[11].parse::<u32>().expect("ticks") + after_name[12].parse::<u32>().expect("ticks"))
}

fn bench(numbers: &[String], addresses: &[String]) {
    let numbers: Vec<usize> = numbers.iter().map(|text| text.parse().expect("a number")).collect();
    let [open, connections, threads, seconds] = numbers[..] else { panic!("four numbers") };
    let client = connect(connections, addresses).expect("a gateway");
    let round = |seconds: f64| {
        let (began, used) = (Instant::now(), processor());
        let end = began + Duration::from_secs_f64(seconds);
        let caller = &|name: usize| {
            let (mut delays, mut waiting) = (Vec::new(), VecDeque::new());
            let mut payload = [42; 200];
            for count in 0u64.. {
                let going = Instant::now() < end;
                while waiting.len() >= open / threads || !going && !waiting.is_empty() {
                    let (from, pending): (Instant, Pending) = waiting.pop_front().expect("one is open");
                    pending.wait().expect("a signature");
                    delays.push(from.elapsed());
                }
                if !going {
                    return delays;
                }
                payload[..8].copy_from_slice(&(count * threads as u64 + name as u64).to_le_bytes());
                let from = Instant::now();
                let deadline = from + Duration::from_secs(10);
                waiting
                    .push_back((from, client.submit("default", &payload, Kind::Unsaid, None, deadline).expect("room")));
            }
            delays
        };
        let mut delays: Vec<Duration> = thread::scope(|scope| {
            let callers: Vec<_> = (0..threads).map(|name| scope.spawn(move || caller(name))).collect();
            callers.into_iter().flat_map(|one| one.join().expect("no panic")).collect()
        });
        let (took, used) = (began.elapsed(), processor() - used);
        delays.sort_unstable();
        let at = |share: f64| delays[(delays.len() as f64 * share) as usize].as_secs_f64() * 1e3;
        let (count, each) = (delays.len() as f64, used.as_secs_f64() * 1e6 / delays.len() as f64);
        println!(
            "{:.0}/s, p50 {:.3} ms, p99 {:.3} ms, {each:.1} µs CPU each",
            count / took.as_secs_f64(),
            at(0.5),
            at(0.99)
        );
    };
    round(0.5);
    round(seconds as f64);
}
