//! The way to a program of this machine that listens on a port: by the loopback addresses,
//! whichever of the two it has chosen.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::net::TcpStream;

use super::super::Wire;
use crate::error::{Error, Result};

/// A program that does not take connections for so long is as good as not there.
const PATIENCE: Duration = Duration::from_secs(5);

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// `None` where nothing listens.
pub async fn to_port(port: u16) -> Result<Option<Box<dyn Wire>>> {
    for address in LOOPBACK {
        match tokio::time::timeout(PATIENCE, TcpStream::connect(SocketAddr::new(address, port))).await {
            Ok(Ok(stream)) if is_own_end(&stream) => {
                // Gone at once: the port is the program's, which may be about to take it.
                let _unsupported = stream.set_zero_linger();
            }
            Ok(Ok(stream)) => {
                let _unsupported = stream.set_nodelay(true);
                return Ok(Some(Box::new(stream)));
            }
            Ok(Err(error)) if is_out_of_means(&error, address) => {
                return Err(Error::unavailable("the preview", error));
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
    Ok(None)
}

/// Where nobody listens the kernel may join a connection with itself, when it happens to choose
/// the very port that is asked for as the near one.
fn is_own_end(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(near), Ok(far)) if near == far)
}

/// This process or the machine has nothing left to connect with: says nothing of the program.
fn is_out_of_means(error: &io::Error, to: IpAddr) -> bool {
    use nix::errno::Errno;
    let code = error.raw_os_error().map(Errno::from_raw);
    // No port is left for the near end. A machine without IPv6 says the same of `::1`.
    let out_of_ports = to.is_ipv4() && matches!(code, Some(Errno::EADDRNOTAVAIL | Errno::EAGAIN));
    out_of_ports || matches!(code, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn either_loopback_address_is_found() {
        for address in LOOPBACK {
            let listener = tokio::net::TcpListener::bind(SocketAddr::new(address, 0)).await;
            let Ok(listener) = listener else { continue };
            let port = listener.local_addr().unwrap().port();
            assert!(to_port(port).await.unwrap().is_some(), "{address}");
        }
    }

    #[test]
    fn to_be_out_of_means_is_not_to_find_nobody() {
        use nix::errno::Errno;
        let is_ours = |code: Errno, to| is_out_of_means(&io::Error::from_raw_os_error(code as i32), to);
        for code in [Errno::EMFILE, Errno::ENOMEM, Errno::EADDRNOTAVAIL] {
            assert!(is_ours(code, LOOPBACK[0]), "{code}");
        }
        assert!(!is_ours(Errno::EADDRNOTAVAIL, LOOPBACK[1]), "there is no IPv6");
        assert!(!is_ours(Errno::ECONNREFUSED, LOOPBACK[0]));
    }

    #[tokio::test]
    async fn nothing_is_none() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        assert!(to_port(port).await.unwrap().is_none());
    }
}
