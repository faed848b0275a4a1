use http::header;
use proptest::prelude::*;

use super::*;

const JOB: &str = "/v3/InsightsDomains/Conversations/QueryJobs/insights_operation_01";

fn links_to(upstream: &'static str) -> Links {
    Links::new(&Uri::from_static(upstream), None)
}

fn base(url: &'static str) -> Base {
    Base::of_url(&Uri::from_static(url))
}

fn rewritten(answer: &str) -> String {
    let links = links_to("http://upstream.example:4010");
    let out = links.rewrite(&Bytes::copy_from_slice(answer.as_bytes()), &base("http://gw:8080")).unwrap();
    String::from_utf8(out.to_vec()).unwrap()
}

/// The rewritten form of a link to `upstream`.
fn led(upstream: &'static str, link: &str) -> Option<String> {
    links_to(upstream).rewrite_location(link, &base("http://gw:8080"))
}

#[test]
fn links_of_single_answers_and_lists_lead_to_the_gateway() {
    for host in ["https://insights.twilio.com", "http://upstream.example:4010"] {
        let answer = r#"{"operationId":"insights_operation_01", "statusUrl" : "HOST/JOB","n":1.50e+3,
            "items":[{"statusUrl":"HOST/JOB","resultUrl":"HOST/JOB/Results?pageSize=1#x"},{},7,null], "resultUrl":null}"#;
        let with = |host: &str| answer.replace("HOST", host).replace("/JOB", JOB);
        assert_eq!(rewritten(&with(host)), with("http://gw:8080"));
    }
}

#[test]
fn all_other_bytes_stay_unchanged() {
    let link = format!("https://insights.twilio.com{JOB}");
    for answer in [
        r#"{"url":"LINK","error":{"statusUrl":"LINK"},"message":"see LINK"}"#,
        r#"{"statusurl":"LINK","resultUrl ":"LINK","":"LINK"}"#,
        r#"{"statusUrl":["LINK"],"resultUrl":{"statusUrl":"LINK"}}"#,
        r#"{"items":{"statusUrl":"LINK"},"jobs":[{"statusUrl":"LINK"}]}"#,
        r#"{"items":[[{"statusUrl":"LINK"}],{"items":[{"statusUrl":"LINK"}]}]}"#,
        r#"[{"statusUrl":"LINK"}]"#,
        r#"{"statusUrl":null,"resultUrl":12.0,"items":null}"#,
        r#""LINK""#,
        "{}",
    ] {
        let answer = answer.replace("LINK", &link);
        assert_eq!(rewritten(&answer), answer);
    }
}

#[test]
fn links_are_understood_in_every_spelling_of_json_and_keep_what_is_not_replaced() {
    let spelled = r#"{ "status\u0055rl":"\u0068ttps:\/\/insights\u002etwilio.com\/v3\/InsightsDomains\/Conversations\/QueryJobs\/\u0061b\/Results?a=\u0062" , "x":"\/" }"#;
    let expected = r#"{ "status\u0055rl":"http://gw:8080\/v3\/InsightsDomains\/Conversations\/QueryJobs\/\u0061b\/Results?a=\u0062" , "x":"\/" }"#;
    assert_eq!(rewritten(spelled), expected);
    let astral = r#"{"statusUrl":"\uD83D\uDE00https://insights.twilio.com/"}"#;
    assert_eq!(rewritten(astral), astral);
}

#[test]
fn an_ambiguous_response_is_an_error() {
    let twice = format!(r#"{{"statusUrl":"x","statusUrl":"https://insights.twilio.com{JOB}"}}"#);
    for answer in [twice.as_str(), "{", "", "{} {}", r#"{"statusUrl":"\ud800"}"#, "\u{feff}{}"] {
        let answer = Bytes::copy_from_slice(answer.as_bytes());
        assert!(links_to("http://upstream").rewrite(&answer, &base("http://gw")).is_err(), "{answer:?}");
    }
}

#[test]
fn hosts_are_compared_by_the_rules_of_dns_and_urls() {
    let ours = |upstream, place: &str| {
        let led = led(upstream, &format!("{place}{JOB}?a=b#c"));
        assert!(led.as_ref().is_none_or(|led| *led == format!("http://gw:8080{JOB}?a=b#c")), "{led:?}");
        led.is_some()
    };
    let upstream = "http://upstream.example:4010";
    for place in [
        "https://insights.twilio.com",
        "HTTPS://Insights.TWILIO.com",
        "https://insights.twilio.com:443",
        "https://insights.twilio.com:",
        "https://insights.twilio.com:0443",
        "https://insights.twilio.com:8443",
        "http://insights.twilio.com",
        "https://insights.twilio.com.",
        "//insights.twilio.com",
        "//insights.twilio.com:443",
        "http://upstream.example:4010",
        "HTTP://UPSTREAM.example.:04010",
        "//upstream.example:4010",
    ] {
        assert!(ours(upstream, place), "{place}");
    }
    for place in [
        "",
        "/",
        "///insights.twilio.com",
        "https:/insights.twilio.com",
        "https:///insights.twilio.com",
        "https:insights.twilio.com",
        "https://",
        "https://user@insights.twilio.com",
        "https://user:secret@insights.twilio.com",
        "https://@insights.twilio.com",
        "https://insights.twilio.com@evil.example",
        "https://evil.example@insights.twilio.com",
        "https://insights.twilio.com:443@evil.example",
        "https://insights.twilio.com.evil.example",
        "https://evil.example/insights.twilio.com",
        "https://evil.example?https://insights.twilio.com",
        "https://evil.example#https://insights.twilio.com",
        "https://xinsights.twilio.com",
        "https://twilio.com",
        "https://api.twilio.com",
        "https://insights.us1.twilio.com",
        "https://insights.twilio.com..",
        "https://.insights.twilio.com",
        "https://insights%2Etwilio.com",
        "https://insights.twilio.com:99999",
        "https://insights.twilio.com:+443",
        "https://insights.twilio.com::443",
        "https://insights.twilio.com:443:443",
        "https://[insights.twilio.com]",
        "https://insights.twilio.com\\",
        "https:\\\\insights.twilio.com",
        "https://insights.twilio.com\t",
        " https://insights.twilio.com",
        "\u{ff48}ttps://insights.twilio.com",
        "ftp://insights.twilio.com",
        "wss://insights.twilio.com",
        "javascript://insights.twilio.com",
        "x https://insights.twilio.com",
        "https://https://insights.twilio.com",
        "https://upstream.example:4010",
        "http://upstream.example",
        "//upstream.example",
        "http://upstream.example:4011",
    ] {
        assert!(!ours(upstream, place), "{place:?}");
    }
    assert!(ours("https://upstream.example", "//upstream.example"));
    assert!(ours("https://upstream.example", "https://upstream.example:443"));
    assert!(!ours("https://upstream.example", "https://upstream.example:80"));
    assert!(ours("http://[::1]:4010", "http://[::1]:4010") && !ours("http://[::1]:4010", "http://[::1]"));
    assert!(!ours("http://[::1]:4010", "http://[::1]x:4010") && !ours("http://[::1]:4010", "http://::1:4010"));
}

#[test]
fn only_the_apis_own_paths_lead_to_the_gateway() {
    let ours = |path: &str| led("http://upstream", &format!("https://insights.twilio.com{path}")).is_some();
    let jobs = "/v3/InsightsDomains/Conversations/QueryJobs";
    let fields = "/v3/ControlPlane/ConversationInsights/CustomFieldMappings";
    for path in [jobs, &format!("{jobs}/a-_9/Results?pageToken=a%2Bb%3D&x=[1]"), &format!("{fields}/x#"), JOB] {
        assert!(ours(path), "{path}");
    }
    for path in [
        "",
        "/",
        "?x=/v3/InsightsDomains/Conversations/QueryJobs",
        "/2010-04-01/Accounts.json",
        "/v3/InsightsDomains/Conversations/QueryJobs/",
        "/v3/InsightsDomains/Conversations/QueryJobs/a/../b",
        "/v3/InsightsDomains/Conversations/QueryJobs/..",
        "/v3/InsightsDomains/Conversations/QueryJobs/%61",
        "/v3/InsightsDomains/Conversations//QueryJobs",
        "//v3/InsightsDomains/Conversations/QueryJobs",
        "/v3/insightsDomains/Conversations/QueryJobs",
        "/v3/InsightsDomains/Conversations/QueryJobs/a;b",
        "/v3/InsightsDomains/Conversations/QueryJobs/a b",
        "/v3/InsightsDomains/Conversations/QueryJobs?x=\u{e4}",
        "/v3/InsightsDomains/Conversations/QueryJobs?x=\"",
        "/v3/InsightsDomains/Conversations/QueryJobs?x=\r\nSet-Cookie:",
    ] {
        assert!(!ours(path), "{path:?}");
    }
}

#[test]
fn the_path_of_the_upstream_is_removed() {
    let upstream = "https://proxy.example/Twilio/";
    let led = |link: String| led(upstream, &link);
    assert_eq!(led(format!("https://proxy.example/Twilio{JOB}")), Some(format!("http://gw:8080{JOB}")));
    assert_eq!(led(format!("https://proxy.example{JOB}")), None);
    assert_eq!(led(format!("https://proxy.example/twilio{JOB}")), None);
    assert_eq!(led(format!("https://insights.twilio.com/Twilio{JOB}")), None);
    assert!(led(format!("https://insights.twilio.com{JOB}")).is_some());
}

#[test]
fn a_client_finds_the_gateway_where_it_reached_it() {
    let request = |uri: &str, host: Option<&str>| {
        let request = Request::builder().uri(uri).header("x-forwarded-host", "evil.example");
        let request = request.header("x-forwarded-proto", "https").header("forwarded", "host=evil.example");
        host.into_iter().fold(request, |request, host| request.header(header::HOST, host)).body(()).unwrap()
    };
    let of = |uri, host, tls| Base::of_request(&request(uri, host), tls).as_str().to_owned();
    assert_eq!(of(JOB, Some("Gw.example:8443"), true), "https://Gw.example:8443");
    assert_eq!(of(JOB, Some("[::1]"), false), "http://[::1]");
    assert_eq!(of("http://target.example:81/v3", Some("other"), false), "http://target.example:81");
    for host in [None, Some("user@gw"), Some("gw:"), Some("gw:99999"), Some("gw/x"), Some("")] {
        assert_eq!(of(JOB, host, true), "", "{host:?}");
    }
    let links = |public| Links::new(&Uri::from_static("http://up"), public);
    let public = Uri::from_static("https://insights.internal:8443/twilio/");
    let base = links(Some(&public)).base(&request(JOB, Some("gw")), false);
    assert_eq!(base.as_str(), "https://insights.internal:8443/twilio");
    assert_eq!(links(None).base(&request(JOB, Some("gw")), false).as_str(), "http://gw");
    let nameless = Base::of_request(&request(JOB, None), false);
    let link = format!("https://insights.twilio.com{JOB}");
    assert_eq!(links(None).rewrite_location(&link, &nameless).as_deref(), Some(JOB));
}

#[test]
fn an_address_cannot_end_the_string_that_it_is_written_into() {
    let public: Uri = r#"http://gw/a"b\c"#.parse().unwrap();
    let answer = Bytes::from(format!(r#"{{"statusUrl":"https://insights.twilio.com{JOB}"}}"#));
    let out = links_to("http://up").rewrite(&answer, &Base::of_url(&public)).unwrap();
    let out: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(out["statusUrl"], format!(r#"http://gw/a"b\c{JOB}"#));
}

/// Text with links or almost links, in places where they count or almost count.
fn answers() -> impl Strategy<Value = String> {
    let parts = [
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        " ",
        "\n",
        "\"",
        "1.50",
        "null",
        "\"a\":",
        "\"items\":",
        "\"items\":[{",
        "\"statusUrl\":",
        "\"resultUrl\":\"",
        "\"result\\u0055rl\":",
        "\\/",
        "\\u0068",
        "}]",
        "?a=b",
        "#c",
        "é",
        "\"https://insights.twilio.com/v3/InsightsDomains/Conversations/QueryJobs/a\"",
        "\"http:\\/\\/up:1\\/v3\\/InsightsDomains\\/Conversations\\/QueryJobs\\/\\u0061\\/Results\"",
        "//insights.twilio.com",
        "https://",
        "https://insights.twilio.com",
        "/v3/InsightsDomains/Conversations/Query",
    ];
    let text = prop::collection::vec(prop::sample::select(parts.to_vec()), 0..10).prop_map(|parts| parts.concat());
    let link = "[\\PC]{0,3}(https?:)?//(insights\\.twilio\\.com|up|up:1)(:443)?/v3/InsightsDomains/Conversations/QueryJobs(/a)?(/Results)?[ -~]{0,4}";
    prop_oneof![
        text.clone(),
        text.prop_map(|text| format!("{{\"statusUrl\":{text}}}")),
        (link, 0..4_usize).prop_map(|(link, place)| {
            let link = serde_json::to_string(&link).unwrap();
            ["{\"statusUrl\": LINK}", "{\"items\":[ {\"resultUrl\":LINK}],\"n\":1.0}", "{\"a\":LINK}", "[LINK]"][place]
                .replace("LINK", &link)
        }),
    ]
}

/// The response without its links.
fn without_links(answer: &[u8]) -> Vec<u8> {
    let value = json::parse(answer).unwrap();
    let (mut out, mut copied) = (Vec::new(), 0);
    for link in links(&value).map(|link| link.range_in(answer).unwrap()) {
        out.extend_from_slice(&answer[copied..link.start]);
        copied = link.end;
    }
    out.extend_from_slice(&answer[copied..]);
    out
}

proptest! {
    #[test]
    fn only_links_change_and_only_once(answer in answers(), public in 0..3_usize) {
        let links = links_to("http://up:1");
        // Among them are the upstream itself, and Twilio's host with a path.
        let base = base(["http://gw/prefix", "http://up:1", "https://insights.twilio.com/x"][public]);
        let answer = Bytes::from(answer);
        let out = links.rewrite(&answer, &base);
        prop_assert_eq!(out.is_ok(), json::parse(&answer).is_ok());
        let Ok(out) = out else { return Ok(()) };
        prop_assert!(json::parse(&out).is_ok());
        prop_assert_eq!(without_links(&out), without_links(&answer));
        prop_assert_eq!(links.rewrite(&out, &base).unwrap(), out);
    }
}
