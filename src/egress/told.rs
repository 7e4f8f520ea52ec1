//! A failed call in a short sentence. What went wrong lies somewhere down the client's chain
//! of errors; what lies above it is the client's own business and stays out of the sentence.

use std::{error::Error, io};

use rustls::CertificateError;

use super::{CONNECT, Failure, names::NameError};

/// `trusts` is false where there are no CA certificates.
pub fn failure(error: &reqwest::Error, trusts: bool) -> Failure {
    if let Some(NameError::Refused(why)) = find::<NameError>(error) {
        return Failure::Refused(why.clone());
    }
    tracing::debug!(?error, "a call failed");
    let why = sentence(error, trusts);
    if error.is_connect() { Failure::Unreachable(why) } else { Failure::Broken(why) }
}

fn sentence(error: &reqwest::Error, trusts: bool) -> String {
    if let Some(name) = find::<NameError>(error) {
        return name.to_string();
    }
    if let Some(tls) = find::<rustls::Error>(error) {
        return format!("TLS: {}", handshake(tls, trusts));
    }
    if error.is_connect() && error.is_timeout() {
        return format!("no connection within {CONNECT:?}");
    }
    if let Some(http) = find::<hyper::Error>(error)
        && (http.is_parse() || http.is_parse_too_large())
    {
        return "the answer is not HTTP".to_owned();
    }
    find::<io::Error>(error).map_or("the connection was closed before an answer came", broken).to_owned()
}

fn handshake(error: &rustls::Error, trusts: bool) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(_) if !trusts => {
            "the server's certificate cannot be checked, there are no CA certificates on this machine"
        }
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer => "the certificate's issuer is not trusted",
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "the certificate has expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the certificate is not valid yet"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the certificate is for another name"
            }
            CertificateError::Revoked => "the certificate was revoked",
            _ => "the certificate is not valid",
        },
        rustls::Error::InvalidMessage(_) => "the server does not speak it",
        rustls::Error::AlertReceived(_) | rustls::Error::PeerIncompatible(_) => {
            "the server does not agree to a handshake"
        }
        _ => "the handshake failed",
    }
}

fn broken(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection reset",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "no route to the host",
        io::ErrorKind::TimedOut => "the connection timed out",
        io::ErrorKind::UnexpectedEof => "the connection was closed too early",
        _ => "the connection failed",
    }
}

/// The first error of a kind on the way down. What an I/O error wraps is not among its
/// sources, so it is looked into.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        at = wrapped.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}
