//! Where members listen and are reached: `http://HOST:PORT`, `https://HOST:PORT`, `unix://PATH`.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// A URL of a member, for peers or for clients.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// Whether it is spoken to by TLS.
    pub tls: bool,
    /// Where it is.
    pub place: Place,
}

/// Where an address is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// A host name or an IP address, and a port. An empty host means all of this machine's.
    Tcp(String, u16),
    /// A socket in the file system. As etcd has it, `unix://HOST:PORT` is the file `HOST:PORT` in
    /// the working directory.
    Unix(PathBuf),
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is no address: {why}; write it like https://host:2380")]
pub struct BadAddress {
    /// The text.
    pub url: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl std::str::FromStr for Address {
    type Err = BadAddress;

    fn from_str(url: &str) -> Result<Self, BadAddress> {
        let bad = |why| BadAddress { url: url.to_owned(), why };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("it has no scheme"))?;
        let tls = match scheme {
            "http" | "unix" => false,
            "https" | "unixs" => true,
            _ => return Err(bad("its scheme must be http, https, unix or unixs")),
        };
        if scheme.starts_with("unix") {
            if rest.is_empty() {
                return Err(bad("it names no file"));
            }
            return Ok(Self { tls, place: Place::Unix(rest.into()) });
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) {
            return Err(bad("it must be a host and a port, without a path"));
        }
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| bad("it has no port"))?;
        let host = match host.strip_prefix('[').map(|h| h.strip_suffix(']')) {
            Some(Some(inner)) => inner,
            Some(None) => return Err(bad("a bracket is not closed")),
            None if host.contains(':') => return Err(bad("an IPv6 address needs brackets")),
            None => host,
        };
        let port = port.parse().map_err(|_| bad("its port is no number below 65536"))?;
        Ok(Self { tls, place: Place::Tcp(host.to_owned(), port) })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.tls { "s" } else { "" };
        match &self.place {
            Place::Tcp(host, port) if host.contains(':') => write!(f, "http{s}://[{host}]:{port}"),
            Place::Tcp(host, port) => write!(f, "http{s}://{host}:{port}"),
            Place::Unix(path) => write!(f, "unix{s}://{}", path.display()),
        }
    }
}

impl Address {
    /// The host that a certificate must be for; a socket's file counts as this machine.
    pub fn host(&self) -> &str {
        match &self.place {
            Place::Tcp(host, _) => host,
            Place::Unix(_) => "localhost",
        }
    }

    /// Connects, trying all addresses of a host name.
    pub(crate) async fn connect(&self) -> io::Result<Socket> {
        match &self.place {
            Place::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                watch_over(&stream)?;
                Ok(Socket::Tcp(stream))
            }
            Place::Unix(path) => Ok(Socket::Unix(UnixStream::connect(path).await?)),
        }
    }

    /// Listens. A socket's file that is there already is replaced.
    ///
    /// # Errors
    /// When the address is taken, or is not one of this machine's.
    pub async fn listen(&self) -> io::Result<Listener> {
        match &self.place {
            Place::Tcp(host, port) if host.is_empty() => {
                // Both families where the machine has both.
                match TcpListener::bind(("::", *port)).await {
                    Ok(listener) => Ok(Listener::Tcp(listener)),
                    Err(_) => Ok(Listener::Tcp(TcpListener::bind(("0.0.0.0", *port)).await?)),
                }
            }
            Place::Tcp(host, port) => {
                Ok(Listener::Tcp(TcpListener::bind((host.as_str(), *port)).await?))
            }
            Place::Unix(path) => {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                Ok(Listener::Unix(UnixListener::bind(path)?))
            }
        }
    }
}

/// Ends a connection to a machine that has gone without a word: what is sent must be acknowledged
/// within 10 s, and a silent machine is asked after 15 s whether it is there.
fn watch_over(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    use std::time::Duration;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(15))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    sockopt::set_tcp_user_timeout(stream, 10_000)?;
    Ok(())
}

/// A place that connections come in at.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A socket in the file system.
    Unix(UnixListener),
}

impl Listener {
    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                stream.set_nodelay(true)?;
                watch_over(&stream)?;
                Ok((Socket::Tcp(stream), from.to_string()))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Socket::Unix(stream), "this machine".into()))
            }
        }
    }

    /// The port, where it is one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(|a| a.port()),
            Self::Unix(_) => None,
        }
    }
}

/// A connection without TLS.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, tls, host, port) in [
            ("http://localhost:2380", false, "localhost", 2380),
            ("https://10.0.0.1:1", true, "10.0.0.1", 1),
            ("https://[::1]:2380", true, "::1", 2380),
            ("http://:2380", false, "", 2380),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address, Address { tls, place: Place::Tcp(host.into(), port) });
            assert_eq!(address.to_string(), text);
        }
        let unix: Address = "unix:///run/x.sock".parse().unwrap();
        assert_eq!(unix.place, Place::Unix("/run/x.sock".into()));
        assert_eq!(unix.to_string(), "unix:///run/x.sock");
        let etcd: Address = "unix://localhost:2379".parse().unwrap();
        assert_eq!(etcd.place, Place::Unix("localhost:2379".into()));
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        for (text, why) in [
            ("localhost:2380", "no scheme"),
            ("ftp://a:1", "scheme must be"),
            ("http://a", "no port"),
            ("http://a:1/b", "without a path"),
            ("http://::1:1", "brackets"),
            ("http://[::1:1", "not closed"),
            ("http://a:99999", "no number"),
            ("unix://", "no file"),
        ] {
            let refused = text.parse::<Address>().unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
