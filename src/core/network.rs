//! A network of IP addresses, in CIDR notation.

use std::fmt;
use std::net::IpAddr;

/// An address and how many of its leading bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Reads `10.0.0.0/8`, `2001:db8::/32` or a single address.
    ///
    /// # Errors
    ///
    /// What a valid one looks like.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let network = Self::read(text)?;
        if bits(network.address) & !network.mask() != 0 {
            return Err(
                "the address has bits beyond its network's prefix; write its first address, such as \"10.0.0.0/8\"",
            );
        }
        Ok(network)
    }

    /// The network of any address in it: `10.0.0.1/8` is `10.0.0.0/8`. `None` if `text` is neither an address nor a
    /// network.
    pub fn around(text: &str) -> Option<Self> {
        let network = Self::read(text).ok()?;
        let first = bits(network.address) & network.mask();
        let address = match network.address {
            IpAddr::V4(_) => IpAddr::V4(u32::try_from(first).ok()?.into()),
            IpAddr::V6(_) => IpAddr::V6(first.into()),
        };
        Some(Self { address, ..network })
    }

    fn read(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "expected an IP address or a network, such as \"10.0.0.0/8\" or \"2001:db8::/32\"";
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| EXPECTED)?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            // Refuse "+8" and "08".
            Some(digits)
                if digits.starts_with(|c: char| c.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0')) =>
            {
                digits.parse().map_err(|_| EXPECTED)?
            }
            Some(_) => return Err(EXPECTED),
            None => longest,
        };
        if prefix > longest { Err(EXPECTED) } else { Ok(Self { address, prefix }) }
    }

    /// Whether `address` is in the network. An IPv4 address counts as one also when it is mapped to IPv6.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && bits(address) & self.mask() == bits(self.address)
    }

    fn mask(&self) -> u128 {
        let width = if self.address.is_ipv4() { 32 } else { 128 };
        let free = width - u32::from(self.prefix);
        u128::MAX.checked_shl(free).unwrap_or(0)
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses() {
        let holds = |network: &str, address: &str| Network::parse(network).unwrap().contains(address.parse().unwrap());
        assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.0"));
        assert!(holds("10.0.0.0/8", "::ffff:10.0.0.1") && !holds("10.0.0.0/8", "::a00:1"));
        assert!(holds("192.0.2.7", "192.0.2.7") && !holds("192.0.2.7", "192.0.2.6"));
        assert!(holds("0.0.0.0/0", "255.255.255.255") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("2001:db8::/32", "2001:db8:ffff::1") && !holds("2001:db8::/32", "2001:db9::"));
        assert!(holds("::/0", "::1") && holds("::1", "::1"));
        assert_eq!(Network::parse("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
    }

    #[test]
    fn around_accepts_any_address_of_the_network() {
        for (text, network) in
            [("10.42.1.1/24", "10.42.1.0/24"), ("2001:db8::1/32", "2001:db8::/32"), ("::1", "::1/128")]
        {
            assert_eq!(Network::around(text).unwrap().to_string(), network);
        }
        assert!(Network::around("10.0.0.0/33").is_none() && Network::around("a.example").is_none());
    }

    #[test]
    fn malformed_networks_are_refused() {
        for text in ["", "10", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/08", "10.0.0.1/8", "::1/64", "a/8"]
        {
            assert!(Network::parse(text).is_err(), "{text}");
        }
    }
}
