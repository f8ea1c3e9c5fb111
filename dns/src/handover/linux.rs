//! The hand-over by SCM_RIGHTS.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio_util::sync::CancellationToken;

use super::{Estate, Inherited};

const HELLO: &[u8] = b"portolan-dns handover 1\n";
const DONE: &[u8] = b"done\n";
/// Sockets in one message; the kernel takes 253.
const CHUNK: usize = 64;
/// How long either side waits for a word of the other. A successor that is slower answers nothing yet: nothing is lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the predecessor for its sockets. Nothing when there is none.
///
/// # Errors
/// When there is one that does not do as it should.
pub fn ask(file: &Path) -> io::Result<Inherited> {
    let mut stream = match UnixStream::connect(file) {
        Ok(stream) => stream,
        // Nobody, or somebody who is gone.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(Inherited::default());
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(HELLO)?;
    let mut inherited = Inherited::default();
    loop {
        let mut kinds = [0; CHUNK];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [io::IoSliceMut::new(&mut kinds)];
        let received = rustix::net::recvmsg(&stream, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let sockets: Vec<OwnedFd> = control
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(sockets) => sockets.collect(),
                _ => Vec::new(),
            })
            .collect();
        let kinds = kinds.get(..received.bytes).unwrap_or_default();
        if kinds.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut sockets = sockets.into_iter();
        for kind in kinds {
            match (kind, sockets.next()) {
                (b'u', Some(socket)) => inherited.udp.push(socket.into()),
                (b't', Some(socket)) => inherited.tcp.push(socket.into()),
                // The end of the list.
                (b'.', None) => {
                    inherited.predecessor = Some(Predecessor(stream));
                    return Ok(inherited);
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

/// A predecessor that waits to be told.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

// === impl Predecessor ===

impl Predecessor {
    /// Says that its sockets are served: it may end.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn dismiss(mut self) -> io::Result<()> {
        self.0.write_all(DONE)
    }
}

// === impl Estate ===

impl Estate {
    fn send(&self, stream: &UnixStream) -> io::Result<()> {
        let udp = self.udp.iter().map(|socket| (b'u', socket.as_fd()));
        let tcp = self.tcp.iter().map(|socket| (b't', socket.as_fd()));
        let all: Vec<_> = udp.chain(tcp).collect();
        for chunk in all.chunks(CHUNK - 1) {
            let kinds: Vec<u8> = chunk.iter().map(|(kind, _)| *kind).collect();
            let sockets: Vec<_> = chunk.iter().map(|(_, socket)| *socket).collect();
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(&sockets)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            rustix::net::sendmsg(stream, &[io::IoSlice::new(&kinds)], &mut control, SendFlags::empty())?;
        }
        let mut writer = stream;
        writer.write_all(b".")
    }

    /// Waits for a successor, gives it the sockets, and returns when it answers. One that goes away is forgotten.
    fn serve(&self, listener: &UnixListener) -> io::Result<()> {
        loop {
            let (mut stream, _) = listener.accept()?;
            let given = self.give(&mut stream);
            match given {
                Ok(true) => return Ok(()),
                Ok(false) => tracing::warn!("a successor took the sockets and went away; going on"),
                Err(error) => tracing::warn!(%error, "a successor could not be given the sockets; going on"),
            }
        }
    }

    fn give(&self, stream: &mut UnixStream) -> io::Result<bool> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut hello = [0; HELLO.len()];
        stream.read_exact(&mut hello)?;
        if hello != HELLO {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.send(stream)?;
        tracing::info!("a successor has the sockets");
        // However long it takes: until then we answer.
        stream.set_read_timeout(None)?;
        let mut done = [0; DONE.len()];
        match stream.read_exact(&mut done) {
            Ok(()) => Ok(done == DONE),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Listens for a successor at `file`, in the place of a predecessor. `succeeded` is cancelled when one has taken over.
///
/// # Errors
/// When the file cannot be made.
pub fn listen(file: PathBuf, estate: Estate, succeeded: CancellationToken) -> io::Result<()> {
    let mut fresh = file.clone().into_os_string();
    fresh.push(".new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    // Whoever may connect may answer for this server.
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, &file)?;
    std::thread::Builder::new()
        .name("handover".to_owned())
        .spawn(move || match estate.serve(&listener) {
            Ok(()) => succeeded.cancel(),
            Err(error) => {
                tracing::error!(file = %file.display(), %error, "no successor can be given the sockets any more");
            }
        })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn the_very_sockets_are_handed_on() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("handover");
        assert!(ask(&file).unwrap().predecessor.is_none(), "nobody is there");
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let (udp_at, tcp_at) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        let estate = Estate {
            udp: vec![udp],
            tcp: vec![tcp],
        };
        let succeeded = CancellationToken::new();
        listen(file.clone(), estate, succeeded.clone()).unwrap();
        // Sent before there is a successor.
        UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .send_to(b"early", udp_at)
            .unwrap();
        drop(ask(&file).unwrap());
        let mut inherited = ask(&file).unwrap();
        assert!(!succeeded.is_cancelled(), "the first one went away");
        let udp = inherited.take_udp(udp_at);
        let mut buffer = [0; 16];
        assert_eq!(udp[0].recv(&mut buffer).unwrap(), 5);
        assert!(inherited.take_tcp(tcp_at).is_some());
        assert!(inherited.take_tcp(tcp_at).is_none(), "taken");
        inherited.predecessor.take().unwrap().dismiss().unwrap();
        while !succeeded.is_cancelled() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
