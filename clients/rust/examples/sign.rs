use std::time::{Duration, Instant};

use hsmcore_client::{Client, Error, Kind, Options};

fn main() -> Result<(), Error> {
    let client = Client::connect(&["unix:/run/hsmcore/sign.sock"], Options::default())?;
    let deadline = Instant::now() + Duration::from_millis(400);
    let pending = client.submit("default", b"another", Kind::Unsaid, None, deadline)?; // does not wait
    let signature = client.sign("default", b"state root", Kind::Unsaid, None, deadline)?;
    println!("{:?} by {:?}, and {:?}", signature.bytes, signature.key, pending.wait()?.bytes);
    client.close();
    Ok(())
}
