//! Connections as halves: one thread reads while another one writes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A gateway that takes no bytes for so long is lost.
const STUCK: Duration = Duration::from_secs(10);
const TURN: Duration = Duration::from_millis(1);

/// Makes a connection to an address. It is called in a thread of its own, and may block.
pub type Dialler = Arc<dyn Fn(&str) -> io::Result<Stream> + Send + Sync>;

/// A connection, as its halves.
pub struct Stream {
    /// Blocks until there are bytes, or the end.
    pub reader: Box<dyn Read + Send>,
    /// Blocks until bytes are taken, but not for ever.
    pub writer: Box<dyn Write + Send>,
    /// Ends both: reads return, and writes fail. It must not block.
    pub hang_up: Box<dyn Fn() + Send>,
}

impl Stream {
    /// Over a Unix socket.
    pub fn unix(socket: UnixStream) -> io::Result<Self> {
        let (reads, hangs) = (socket.try_clone()?, socket.try_clone()?);
        socket.set_write_timeout(Some(STUCK))?;
        let hang_up = Box::new(move || drop(hangs.shutdown(Shutdown::Both)));
        Ok(Self { reader: Box::new(reads), writer: Box::new(socket), hang_up })
    }

    /// Over TCP: any stream that reads and writes this socket (a clone of its own), such as rustls's `StreamOwned`. Reads
    /// and writes have the stream in turn, and never block while they have it.
    pub fn over_tcp<S: Read + Write + Send + 'static>(stream: S, socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        let (shared, hangs) = (Arc::new(Mutex::new(stream)), socket.try_clone()?);
        let reader = Box::new(Half { shared: shared.clone(), socket: socket.try_clone()? });
        let hang_up = Box::new(move || drop(hangs.shutdown(Shutdown::Both)));
        Ok(Self { reader, writer: Box::new(Half { shared, socket }), hang_up })
    }
}

struct Half<S> {
    shared: Arc<Mutex<S>>,
    socket: TcpStream,
}

impl<S> Half<S> {
    fn turn<T>(&self, act: impl FnOnce(&mut S) -> io::Result<T>) -> io::Result<T> {
        let mut stream = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        self.socket.set_nonblocking(true)?;
        let found = act(&mut stream);
        self.socket.set_nonblocking(false)?;
        found
    }

    /// Have turns until one does not fail for want of room.
    fn turns<T>(&self, mut act: impl FnMut(&mut S) -> io::Result<T>) -> io::Result<T> {
        let end = Instant::now() + STUCK;
        loop {
            match self.turn(&mut act) {
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => std::thread::sleep(TURN),
                done => return done,
            }
        }
    }
}

impl<S: Read> Read for Half<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.turn(|stream| stream.read(buffer)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            // Wait until there is something. The other half's turn may have made the socket one that does not block.
            match self.socket.peek(&mut [0]) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    }
}

impl<S: Write> Write for Half<S> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.turns(|stream| stream.write(data))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.turns(Write::flush)
    }
}
