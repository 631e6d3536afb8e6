//! Looks up names of services, protocols and users in files of this host.
//!
//! libc's `getservbyname`, `getprotobyname` and `getpwnam` load NSS modules: these may use the
//! network, and a static binary can't load them.

use std::io;

/// The file with the names of services.
pub const SERVICES: &str = "/etc/services";
/// The file with the names of protocols above IP.
pub const PROTOCOLS: &str = "/etc/protocols";
/// The file with the names of users.
pub const PASSWD: &str = "/etc/passwd";

/// The TCP port of a service, if the file has it.
///
/// # Errors
/// The file can't be read.
pub fn service_port(name: &str) -> io::Result<Option<u16>> {
    Ok(find_service(&read(SERVICES)?, name))
}

/// The number of a protocol, if the file has it.
///
/// # Errors
/// The file can't be read.
pub fn protocol_number(name: &str) -> io::Result<Option<u8>> {
    Ok(find_protocol(&read(PROTOCOLS)?, name))
}

/// The id of a user, if the file has it.
///
/// # Errors
/// The file can't be read.
pub fn user_id(name: &str) -> io::Result<Option<u32>> {
    Ok(find_user(&read(PASSWD)?, name))
}

fn read(path: &str) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
}

/// A line is `name port/protocol alias... # comment` (services(5)).
fn find_service(text: &str, wanted: &str) -> Option<u16> {
    text.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (name, port) = (words.next()?, words.next()?);
        let port = port.strip_suffix("/tcp")?.parse().ok()?;
        (name == wanted || words.any(|alias| alias == wanted)).then_some(port)
    })
}

/// A line is `name number alias... # comment` (protocols(5)).
fn find_protocol(text: &str, wanted: &str) -> Option<u8> {
    text.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (name, number) = (words.next()?, words.next()?.parse().ok()?);
        (name == wanted || words.any(|alias| alias == wanted)).then_some(number)
    })
}

/// A line is `name:password:uid:...` (passwd(5)).
fn find_user(text: &str, wanted: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?);
        (name == wanted).then(|| uid.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_found_by_name_or_alias_and_only_for_tcp() {
        let services = "# Network services\n\
                        domain\t\t53/udp\n\
                        domain          53/tcp\n\
                        http\t\t80/tcp\t\twww\t# WorldWideWeb HTTP\n\
                        tftp\t\t69/udp\n\
                        broken\n\
                        toobig 70000/tcp\n";
        for (name, port) in [
            ("domain", Some(53)),
            ("http", Some(80)),
            ("www", Some(80)),
            ("WorldWideWeb", None),
            ("tftp", None),
            ("broken", None),
            ("toobig", None),
        ] {
            assert_eq!(find_service(services, name), port, "{name}");
        }
    }

    #[test]
    fn a_protocol_is_found_by_name_or_alias() {
        let protocols = "# Internet protocols\n\
                         ip\t0\tIP\t\t# internet protocol\n\
                         #hopopt\t0\tHOPOPT\n\
                         l2tp\t115\tL2TP\n\
                         broken\n";
        for (name, number) in [
            ("ip", Some(0)),
            ("L2TP", Some(115)),
            ("hopopt", None),
            ("internet", None),
            ("broken", None),
        ] {
            assert_eq!(find_protocol(protocols, name), number, "{name}");
        }
    }

    #[test]
    fn a_user_is_found_by_name_alone() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\n\
                      +::::::\n\
                      www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n";
        assert_eq!(find_user(passwd, "www-data"), Some(33));
        assert_eq!(find_user(passwd, "root"), Some(0));
        assert_eq!(find_user(passwd, "x"), None);
        assert_eq!(find_user(passwd, "+"), None);
    }
}
