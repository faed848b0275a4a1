//! `[server]` and `[admin]`: where the gateway listens, and who may connect.

use std::net::{IpAddr, SocketAddr};

use crate::config::path::Path;
use crate::config::reader::{Field, Table};
use crate::config::record::Key;
use crate::config::secret;
use crate::config::settings::{Admin, Listen, Proxies, Server, Tls};
use crate::config::shape::Shape;
use crate::config::show;
use crate::config::values::{MIB, PIB, Paths, parse_sha256, parse_url, seconds, socket_path};
use crate::core::network::Network;
use crate::semantics::origin::Origin;

pub(in crate::config) fn server(table: &mut Table<'_>) -> Server {
    const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
    let at_start = Key::at_start;
    Server {
        listen: table.value(
            at_start("listen").of(Shape::Texts),
            vec![Listen::Tcp(LISTEN)],
            |value| show::listen(value),
            listen,
        ),
        open: table.boolean("open", false),
        drain: table.duration(at_start("drain"), seconds(30)),
        max_body: table.size("max_body", MIB, 1..=64 * MIB),
        body_memory: table.size(at_start("body_memory"), 256 * MIB, MIB..=PIB),
        max_connections: table.number(at_start("max_connections"), 10_000, 1..=1_000_000),
        header_timeout: table.positive_duration(at_start("header_timeout"), seconds(10)),
        body_timeout: table.positive_duration("body_timeout", seconds(30)),
        write_timeout: table.positive_duration(at_start("write_timeout"), seconds(30)),
        unix_mode: table.value(
            at_start("unix_mode"),
            0o600,
            |mode| show::text(&format_args!("{mode:04o}")),
            |field| field.parsed(parse_unix_mode),
        ),
        proxy_protocol: table.value(
            at_start("proxy_protocol").of(Shape::Texts),
            Proxies::default(),
            show::proxies,
            proxy_protocol,
        ),
        public_url: table
            .optional("public_url", show::url, |field| field.parsed(|text| parse_url(text, Paths::Allowed))),
        tls: tls(table),
        cors: table.value(Key::from("cors").of(Shape::Texts), Vec::new(), |origins| show::list(origins), cors),
    }
}

fn cors(field: Field<'_>) -> Option<Vec<Origin>> {
    let report = field.report;
    let origin = |(path, text): (Path, String)| {
        let origin = Origin::parse(&text);
        origin.map_err(|message| report.fault(&path, message)).ok()
    };
    Some(field.texts()?.into_iter().filter_map(origin).collect())
}

fn listen(field: Field<'_>) -> Option<Vec<Listen>> {
    let (report, path) = (field.report, field.path.clone());
    let Some(texts) = field.texts() else {
        // Not the default, which other checks would report as well.
        return Some(Vec::new());
    };
    if texts.is_empty() {
        report.fault(&path, "needs at least one address, such as \"127.0.0.1:8080\"");
    }
    let entry = |(path, text): &(Path, String)| {
        let entry = parse_listen(text);
        entry.map_err(|message| report.fault(path, message)).ok()
    };
    Some(texts.iter().filter_map(entry).collect())
}

/// In octal, the usual form of a mode; as text, because a number in TOML is decimal.
fn parse_unix_mode(text: &str) -> Result<u32, &'static str> {
    let digits = (3..=4).contains(&text.len()) && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if digits && mode <= 0o777 => Ok(mode),
        _ => Err("expected a file mode in octal digits, such as \"0660\""),
    }
}

fn proxy_protocol(field: Field<'_>) -> Option<Proxies> {
    let report = field.report;
    let mut proxies = Proxies::default();
    for (path, text) in field.texts()? {
        match Network::parse(&text) {
            _ if text == "unix" => proxies.unix = true,
            Ok(network) => proxies.networks.push(network),
            Err(message) => report.fault(&path, message),
        }
    }
    Some(proxies)
}

fn parse_listen(text: &str) -> Result<Listen, &'static str> {
    if let Some(name) = text.strip_prefix("systemd:") {
        // What systemd.socket(5) allows as a FileDescriptorName.
        let fits = name.bytes().all(|b| b.is_ascii_graphic() && b != b':');
        return match name {
            _ if fits && (1..=255).contains(&name.len()) => Ok(Listen::Systemd(name.to_owned())),
            _ => Err("expected the FileDescriptorName of a socket unit, such as \"systemd:gateway\""),
        };
    }
    let Some(path) = text.strip_prefix("unix:") else {
        return match text.parse() {
            Ok(address) => Ok(Listen::Tcp(address)),
            Err(_) => Err(
                "expected an IP address with a port, such as \"127.0.0.1:8080\" or \"[::1]:8080\", \"unix:/path/to.sock\" or \"systemd:NAME\"",
            ),
        };
    };
    socket_path(path).map(Listen::Unix)
}

fn tls(server: &mut Table<'_>) -> Option<Tls> {
    let tls = server.section("tls", read_tls);
    // Certificates are read again at a reload, but a listener does not start or stop to speak TLS then.
    server.record(Key::present_at_start("tls").of(Shape::Tls), tls.as_ref().map(show::tls), None);
    tls
}

fn read_tls(table: &mut Table<'_>) -> Option<Tls> {
    let (report, path) = (table.report(), table.path().clone());
    let given = report.is_given(&path);
    let [cert, key, client_ca] = ["cert", "key", "client_ca"].map(|key| table.take(key).and_then(Field::file));
    if let Some(file) = &cert {
        secret::check_pem(file, "CERTIFICATE", &path.key("cert"), report);
    }
    if let Some(file) = &client_ca {
        secret::check_pem(file, "CERTIFICATE", &path.key("client_ca"), report);
    }
    if let Some(file) = key.as_ref().filter(|_| !report.is_without_secrets()) {
        let path = path.key("key");
        if let Some(about) = secret::check_pem(file, "PRIVATE KEY", &path, report) {
            secret::warn_if_readable_by_all(&about, &path, report);
        }
    }
    match (cert, key) {
        (Some(cert), Some(key)) => Some(Tls { cert, key, client_ca }),
        _ if given => {
            report.fault(&path, "needs both cert and key, each the path of a PEM file");
            None
        }
        _ => None,
    }
}

pub(in crate::config) fn admin(table: &mut Table<'_>) -> Admin {
    const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9090);
    let address =
        |text: &str| text.parse().map_err(|_| "expected an IP address with a port, such as \"127.0.0.1:9090\"");
    Admin {
        listen: table.value(Key::at_start("listen"), LISTEN, show::text, |field| field.parsed(address)),
        token_sha256: table.optional(
            "token_sha256",
            |hash| show::text(&show::hex(hash)),
            |field| field.parsed(parse_sha256),
        ),
        show_queries: table.boolean("show_queries", false),
        explorer: table.boolean("explorer", true),
    }
}
