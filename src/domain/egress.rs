//! Which addresses and URLs a user's word may make the server call: those of the public
//! internet, and what the operator allows. Texts are read as browsers read them (WHATWG URL),
//! so that no spelling of an address means one thing here and another to the client.
//!
//! A URL that passes is not yet safe: a name is only as public as the addresses that it has
//! when it is connected to. Those are `crate::egress`'s to look up, and [`refusal`]'s to judge.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

const MAX_BYTES: usize = 2_048;

/// A URL that may be called as far as its text tells.
#[derive(Debug, Clone)]
pub struct Target(Url);

impl Target {
    /// An http(s) URL with a host and no user info, of 2,048 bytes at most. The host may be an
    /// address that is refused.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        if text.len() > MAX_BYTES {
            return Err(Refused::new("a URL has 2048 bytes at most"));
        }
        let url = Url::parse(text).map_err(|_| Refused::new("not a URL"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refused::new("only http and https URLs are called"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refused::new("a URL with a user name or a password is not called"));
        }
        match url.host() {
            Some(Host::Domain(name)) if !is_name(name) => Err(Refused::new("the host is not a name or an address")),
            Some(_) => Ok(Self(url)),
            None => Err(Refused::new("the URL has no host")),
        }
    }

    pub fn url(&self) -> &Url {
        &self.0
    }

    /// The host where it is an address, however it was spelled.
    pub fn literal(&self) -> Option<IpAddr> {
        match self.0.host()? {
            Host::Ipv4(address) => Some(address.into()),
            Host::Ipv6(address) => Some(address.into()),
            Host::Domain(_) => None,
        }
    }

    /// Scheme, host and port, `https://example.com:443`: what limits and breakers count by.
    /// `example.com.` is the same host as `example.com`.
    pub fn origin(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        let host = host.strip_suffix('.').unwrap_or(host);
        format!("{}://{host}:{}", self.0.scheme(), self.0.port_or_known_default().unwrap_or_default())
    }
}

/// A browser's host may have quotes and braces in it; no name that is looked up has, and
/// they do not fit into a request.
fn is_name(host: &str) -> bool {
    host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// Why something may not be called. Displayed, it is for the user: it never tells which
/// address a name has, only of what kind, so that nobody can read an inner network's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(String);

impl Refused {
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Why an address may not be called, as a noun (`a loopback address`); None when it may.
///
/// `own` are the server's addresses. `allow` admits before anything refuses. An IPv4-mapped
/// address, in any of the three, is the IPv4 address that it maps; one of `64:ff9b::/96`
/// (NAT64) is as public, as allowed and as much the server's as the IPv4 address it ends in.
pub fn refusal(address: IpAddr, allow: &[IpNet], own: &[IpAddr]) -> Option<&'static str> {
    let address = address.to_canonical();
    let reached = behind_nat64(address).unwrap_or(address);
    let is_one = |is: &dyn Fn(IpAddr) -> bool| is(address) || is(reached);
    if is_one(&|a| allow.iter().any(|net| canonical(*net).contains(&a))) {
        return None;
    }
    let own = || is_one(&|a| own.iter().any(|own| own.to_canonical() == a)).then_some("an address of this server");
    special(reached).or_else(own)
}

/// What is not for the public internet, after IANA's two registries of special-purpose
/// addresses. Where the registries call a small part of a range global, it is refused with the
/// range: no receiver lives at an anycast address of a protocol.
fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => V4.iter().find(|(net, _)| net.contains(&address)).map(|(_, kind)| *kind),
        IpAddr::V6(address) => match V6.iter().find(|(net, _)| net.contains(&address)) {
            Some((_, kind)) => Some(kind),
            // What is not handed out yet is refused until it is known what it is for.
            None => (!GLOBAL_UNICAST.contains(&address)).then_some(RESERVED),
        },
    }
}

const LOOPBACK: &str = "a loopback address";
const PRIVATE: &str = "a private address";
const LINK_LOCAL: &str = "a link-local address";
const BENCHMARKING: &str = "a benchmarking address";
const DOCUMENTATION: &str = "a documentation address";
const MULTICAST: &str = "a multicast address";
const SIX_TO_FOUR: &str = "a 6to4 address";
const RESERVED: &str = "a reserved address";

const V4: [(Ipv4Net, &str); 16] = [
    (v4([0, 0, 0, 0], 8), "an address of \"this network\""),
    (v4([10, 0, 0, 0], 8), PRIVATE),
    (v4([100, 64, 0, 0], 10), "a carrier's shared address"),
    (v4([127, 0, 0, 0], 8), LOOPBACK),
    (v4([169, 254, 0, 0], 16), LINK_LOCAL),
    (v4([172, 16, 0, 0], 12), PRIVATE),
    (v4([192, 0, 0, 0], 24), RESERVED),
    (v4([192, 0, 2, 0], 24), DOCUMENTATION),
    (v4([192, 88, 99, 0], 24), SIX_TO_FOUR),
    (v4([192, 168, 0, 0], 16), PRIVATE),
    (v4([198, 18, 0, 0], 15), BENCHMARKING),
    (v4([198, 51, 100, 0], 24), DOCUMENTATION),
    (v4([203, 0, 113, 0], 24), DOCUMENTATION),
    (v4([224, 0, 0, 0], 4), MULTICAST),
    (v4([255, 255, 255, 255], 32), "the broadcast address"),
    (v4([240, 0, 0, 0], 4), RESERVED),
];

/// The first that fits names the address. IPv4-compatible, 6to4 and Teredo addresses are
/// refused whatever they hold; so is NAT64's local prefix, since where in such an address the
/// IPv4 address stands is its network's choice.
const V6: [(Ipv6Net, &str); 15] = [
    (v6(0, 128), "the unspecified address"),
    (v6(1, 128), LOOPBACK),
    (v6(0, 96), "an IPv4-compatible address"),
    (v6(0x0064_ff9b_0001 << 80, 48), "a local NAT64 address"),
    (v6(0x0100 << 112, 64), "a discard address"),
    (v6(0x2001 << 112, 32), "a Teredo address"),
    (v6(0x2001_0002 << 96, 48), BENCHMARKING),
    (v6(0x2001 << 112, 23), RESERVED),
    (v6(0x2001_0db8 << 96, 32), DOCUMENTATION),
    (v6(0x2002 << 112, 16), SIX_TO_FOUR),
    (v6(0x3fff << 112, 20), DOCUMENTATION),
    (v6(0xfc00 << 112, 7), "a unique-local address"),
    (v6(0xfe80 << 112, 10), LINK_LOCAL),
    (v6(0xfec0 << 112, 10), "a site-local address"),
    (v6(0xff00 << 112, 8), MULTICAST),
];

const GLOBAL_UNICAST: Ipv6Net = v6(0x2000 << 112, 3);
const NAT64: Ipv6Net = v6(0x0064_ff9b << 96, 96);

const fn v4(octets: [u8; 4], len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::from_octets(octets), len)
}

const fn v6(bits: u128, len: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), len)
}

/// The IPv4 address that a translator would send to.
fn behind_nat64(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V6(address) if NAT64.contains(&address) => {
            let [.., a, b, c, d] = address.octets();
            Some(Ipv4Addr::new(a, b, c, d).into())
        }
        _ => None,
    }
}

/// A net of mapped addresses as the IPv4 net that it is.
fn canonical(net: IpNet) -> IpNet {
    match net {
        IpNet::V6(v6) => match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
            (Some(v4), Some(len)) => Ipv4Net::new(v4, len).map_or(net, IpNet::V4),
            _ => net,
        },
        IpNet::V4(_) => net,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From the contract and IANA's registries, each with a public address next to it.
    const REFUSED: [&str; 16] = [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "255.255.255.255/32",
    ];
    const REFUSED_V6: [&str; 22] = [
        "::/128",
        "::1/128",
        "::/96",
        "::ffff:0:0:0/96",
        "64:ff9b:1::/48",
        "100::/64",
        "100:0:0:1::/64",
        "2001::/32",
        "2001:2::/48",
        "2001:10::/28",
        "2001:20::/28",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
        "4000::/2",
        "5f00::/16",
        "8000::/1",
        "fc00::/7",
        "fd00:ec2::254/128",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    ];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn refused(text: &str) -> Option<&'static str> {
        refusal(ip(text), &[], &[])
    }

    fn v4_net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    /// Every way to write an IPv4 address into an IPv6 address that a packet may take.
    fn embeddings(v4: Ipv4Addr) -> [Ipv6Addr; 8] {
        let [a, b, c, d] = v4.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let middle = u16::from_be_bytes([0, c]);
        [
            v4.to_ipv6_mapped(),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 1, high, middle, u16::from_be_bytes([d, 0]), 0, 0),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2001, 0, 0x4136, 0xe378, 0x8000, 0x63bf, !high, !low),
            Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
        ]
    }

    #[test]
    fn ranges_end_where_they_end() {
        let edges = [
            ("1.0.0.0", "0.255.255.255"),
            ("9.255.255.255", "10.0.0.0"),
            ("11.0.0.0", "10.255.255.255"),
            ("100.63.255.255", "100.64.0.0"),
            ("100.128.0.0", "100.127.255.255"),
            ("126.255.255.255", "127.0.0.0"),
            ("128.0.0.0", "127.255.255.255"),
            ("169.253.255.255", "169.254.0.0"),
            ("169.255.0.0", "169.254.255.255"),
            ("172.15.255.255", "172.16.0.0"),
            ("172.32.0.0", "172.31.255.255"),
            ("191.255.255.255", "192.0.0.0"),
            ("192.0.1.0", "192.0.0.255"),
            ("192.0.1.255", "192.0.2.0"),
            ("192.0.3.0", "192.0.2.255"),
            ("192.88.98.255", "192.88.99.0"),
            ("192.88.100.0", "192.88.99.255"),
            ("192.167.255.255", "192.168.0.0"),
            ("192.169.0.0", "192.168.255.255"),
            ("198.17.255.255", "198.18.0.0"),
            ("198.20.0.0", "198.19.255.255"),
            ("198.51.99.255", "198.51.100.0"),
            ("198.51.101.0", "198.51.100.255"),
            ("203.0.112.255", "203.0.113.0"),
            ("203.0.114.0", "203.0.113.255"),
            ("223.255.255.255", "224.0.0.0"),
            ("2000::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("2001:200::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8::"),
            ("2001:db9::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("2003::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff::"),
            ("3fff:1000::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "4000::"),
            ("64:ff9b::808:808", "64:ff9b::1:808:808"),
            ("::ffff:8.8.8.8", "::fffe:808:808"),
        ];
        for (public, not) in edges {
            assert_eq!(refused(public), None, "{public}");
            assert!(refused(not).is_some(), "{not}");
        }
    }

    #[test]
    fn the_public_internet_is_called() {
        for text in ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::200e"] {
            assert_eq!(refused(text), None, "{text}");
        }
    }

    #[test]
    fn a_refusal_names_the_kind() {
        let kinds = [
            ("127.0.0.1", LOOPBACK),
            ("::1", LOOPBACK),
            ("::ffff:127.0.0.1", LOOPBACK),
            ("64:ff9b::7f00:1", LOOPBACK),
            ("64:ff9b::a9fe:a9fe", LINK_LOCAL),
            ("::", "the unspecified address"),
            ("::127.0.0.1", "an IPv4-compatible address"),
            ("10.1.2.3", PRIVATE),
            ("255.255.255.255", "the broadcast address"),
            ("2001:0:1::", "a Teredo address"),
            ("2001:2::1", BENCHMARKING),
            ("fd00:ec2::254", "a unique-local address"),
        ];
        for (text, kind) in kinds {
            assert_eq!(refused(text), Some(kind), "{text}");
        }
    }

    #[test]
    fn the_servers_own_addresses_are_refused_unless_allowed() {
        let own = [ip("93.184.216.34"), ip("2606:4700::1")];
        for text in ["93.184.216.34", "::ffff:93.184.216.34", "64:ff9b::5db8:d822", "2606:4700::1"] {
            assert_eq!(refusal(ip(text), &[], &own), Some("an address of this server"), "{text}");
            let allow = ["93.184.216.0/24".parse().unwrap(), "2606:4700::/32".parse().unwrap()];
            assert_eq!(refusal(ip(text), &allow, &own), None, "{text}");
        }
        assert_eq!(refusal(ip("93.184.216.35"), &[], &own), None);
        assert_eq!(refusal(ip("93.184.216.34"), &[], &[ip("::ffff:93.184.216.34")]), Some("an address of this server"));
    }

    #[test]
    fn an_allowed_net_admits_no_more_than_itself() {
        let allow = ["127.0.0.0/8".parse().unwrap(), "::ffff:10.0.0.0/104".parse().unwrap()];
        for text in ["127.9.9.9", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "10.1.2.3", "::ffff:10.1.2.3"] {
            assert_eq!(refusal(ip(text), &allow, &[]), None, "{text}");
        }
        for text in ["::1", "::127.0.0.1", "2002:7f00:1::1", "64:ff9b:1::7f00:1", "192.168.0.1", "169.254.169.254"] {
            assert!(refusal(ip(text), &allow, &[]).is_some(), "{text}");
        }
        let all_v6 = ["::/0".parse().unwrap()];
        assert_eq!(refusal(ip("fd00::1"), &all_v6, &[]), None);
        for text in ["10.0.0.1", "::ffff:10.0.0.1"] {
            assert_eq!(refusal(ip(text), &all_v6, &[]), Some(PRIVATE), "a mapped address is no IPv6 address: {text}");
        }
    }

    #[test]
    fn an_address_is_found_in_every_disguise() {
        let disguises = [
            "http://127.1/",
            "http://127.0.1/",
            "http://0x7f.1/",
            "http://0x7f000001/",
            "http://2130706433/",
            "http://017700000001/",
            "http://0177.0.0.01/",
            "http://127.0.0.1./",
            "http://127。0。0。1/",
            "http://①②⑦.0.0.1/",
            "http://１２７.0.0.1/",
            "http://%31%32%37.0.0.1/",
            "http://127.0.0.1:80/",
            "http:127.0.0.1",
            "http:\\\\127.0.0.1\\",
            "\t http://127.0.0.\n1 ",
            "HTTP://127.0.0.1?@example.com",
            "http://127.0.0.1#@example.com/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://[0:0:0:0:0:ffff:7f00:0001]:8080/",
        ];
        for text in disguises {
            let literal = Target::parse(text).unwrap_or_else(|e| panic!("{text:?}: {e}")).literal();
            assert_eq!(literal.map(|a| a.to_canonical()), Some(ip("127.0.0.1")), "{text:?}");
        }
    }

    #[test]
    fn names_are_not_addresses() {
        for text in ["http://localhost/", "https://example.com/a?b#c", "http://127.0.0.1.example.com", "http://_a.b-c/"]
        {
            assert_eq!(Target::parse(text).unwrap().literal(), None, "{text}");
        }
    }

    #[test]
    fn what_is_not_called_says_why() {
        let long = format!("http://example.com/{}", "a".repeat(2_030));
        let cases = [
            ("", "not a URL"),
            ("example.com", "not a URL"),
            ("http://", "not a URL"),
            ("http://256.0.0.1/", "not a URL"),
            ("http://1.2.3.4.5/", "not a URL"),
            ("http://[fe80::1%25lo]/", "not a URL"),
            ("http://a b/", "not a URL"),
            ("ftp://example.com/", "only http and https URLs are called"),
            ("file:///etc/passwd", "only http and https URLs are called"),
            ("javascript:alert(1)", "only http and https URLs are called"),
            ("http://user@example.com/", "a URL with a user name or a password is not called"),
            ("http://:secret@example.com/", "a URL with a user name or a password is not called"),
            ("http://example.com@127.0.0.1/", "a URL with a user name or a password is not called"),
            ("http://a\"b/", "the host is not a name or an address"),
            ("http://{a}/", "the host is not a name or an address"),
            (&long, "a URL has 2048 bytes at most"),
        ];
        for (text, why) in cases {
            assert_eq!(Target::parse(text).map(|t| t.0).map_err(|e| e.to_string()), Err(why.to_owned()), "{text}");
        }
        assert!(Target::parse(&long[..2_048]).is_ok());
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let cases = [
            ("https://Example.com/a", "https://example.com:443"),
            ("https://example.com.:443/", "https://example.com:443"),
            ("http://example.com:8080?q", "http://example.com:8080"),
            ("http://127.1", "http://127.0.0.1:80"),
            ("http://[0:0::1]/", "http://[::1]:80"),
            ("http://bücher.example", "http://xn--bcher-kva.example:80"),
        ];
        for (text, origin) in cases {
            assert_eq!(Target::parse(text).unwrap().origin(), origin);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn nothing_in_a_refused_range_is_called_in_any_embedding(net in prop::sample::select(&REFUSED[..]), host: u32) {
            let net = v4_net(net);
            let address = Ipv4Addr::from(u32::from(net.network()) | host & u32::from(net.hostmask()));
            prop_assert!(refusal(address.into(), &[], &[]).is_some(), "{}", address);
            for v6 in embeddings(address) {
                prop_assert!(refusal(v6.into(), &[], &[]).is_some(), "{} as {}", address, v6);
            }
        }

        #[test]
        fn nothing_in_a_refused_v6_range_is_called(net in prop::sample::select(&REFUSED_V6[..]), host: u128) {
            let net: Ipv6Net = net.parse().unwrap();
            let address = Ipv6Addr::from(u128::from(net.network()) | host & u128::from(net.hostmask()));
            prop_assert!(refusal(address.into(), &[], &[]).is_some(), "{}", address);
        }

        #[test]
        fn mapped_and_translated_addresses_are_as_public_as_the_address(bits: u32) {
            let address = Ipv4Addr::from(bits);
            let why = refusal(address.into(), &[], &[]);
            prop_assert_eq!(why.is_some(), REFUSED.iter().any(|net| v4_net(net).contains(&address)));
            let [mapped, _, nat64, ..] = embeddings(address);
            prop_assert_eq!(refusal(mapped.into(), &[], &[]), why);
            prop_assert_eq!(refusal(nat64.into(), &[], &[]), why);
        }

        #[test]
        fn whatever_the_standard_library_calls_special_is_refused(v4: u32, v6: u128, to in 0_usize..8) {
            let v4 = Ipv4Addr::from(v4);
            let special = v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_multicast()
                || v4.is_broadcast() || v4.is_documentation() || v4.is_unspecified();
            prop_assert!(!special || refusal(v4.into(), &[], &[]).is_some(), "{}", v4);
            // Few of all addresses begin as the special ones do.
            let begin = [0, 0x0064 << 112, 0x2000 << 112, 0x2001 << 112, 0xfc00 << 112, 0xfe80 << 112, 0xff00 << 112, v6];
            let v6 = Ipv6Addr::from(begin[to] | v6 >> 9);
            let special = v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.is_unique_local()
                || v6.is_unicast_link_local();
            prop_assert!(!special || refusal(v6.into(), &[], &[]).is_some(), "{}", v6);
        }

        #[test]
        fn an_allowed_net_admits_every_address_of_it(bits: u128, len in 0_u8..=128, host: u128, own: bool) {
            let net = Ipv6Net::new(bits.into(), len).unwrap();
            let address = Ipv6Addr::from(u128::from(net.network()) | host & u128::from(net.hostmask()));
            prop_assume!(address.to_ipv4_mapped().is_none());
            let own = if own { vec![IpAddr::from(address)] } else { Vec::new() };
            prop_assert_eq!(refusal(address.into(), &[net.into()], &own), None);
        }

        #[test]
        fn an_allowed_v4_net_admits_mapped_and_translated_too(bits: u32, len in 0_u8..=32, host: u32) {
            let net = Ipv4Net::new(bits.into(), len).unwrap();
            let address = Ipv4Addr::from(u32::from(net.network()) | host & u32::from(net.hostmask()));
            let [mapped, _, nat64, ..] = embeddings(address);
            for form in [address.into(), mapped.into(), nat64.into()] {
                prop_assert_eq!(refusal(form, &[net.into()], &[address.into()]), None);
            }
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = Target::parse(&text);
        }

        #[test]
        fn what_parses_keeps_its_promises(
            text in "(http|https|HTTP|ftp)://[a-z0-9.\\[\\]:@%{}\"_~!-]{0,24}(/[ -~é]{0,12})?"
        ) {
            if let Ok(target) = Target::parse(&text) {
                prop_assert!(matches!(target.url().scheme(), "http" | "https"));
                prop_assert!(target.url().username().is_empty() && target.url().password().is_none());
                let again = Target::parse(target.url().as_str()).unwrap();
                prop_assert_eq!(again.origin(), target.origin());
                prop_assert_eq!(again.literal(), target.literal());
                prop_assert!(target.origin().parse::<http::Uri>().is_ok());
                prop_assert!(target.url().as_str().parse::<http::Uri>().is_ok());
            }
        }
    }
}
