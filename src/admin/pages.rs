//! The HTML pages, as they are compiled in. Each is one document that loads nothing else.
//!
//! Style and script are inline, and the page's policy names them by their hashes (CSP level 3). So a browser runs no
//! other script, and connects only to this listener.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::answer::text;
use super::runbook;
use crate::request::body::ResponseBody;

const STYLE: &str = include_str!("page/style.css");

/// The parts of the script, in the order in which they run. Each uses only those before it.
const SCRIPT: &[&str] = &[
    include_str!("page/words.js"),
    include_str!("page/dom.js"),
    include_str!("page/charts.js"),
    include_str!("page/status.js"),
    include_str!("page/entries.js"),
    include_str!("page/snippets.js"),
    include_str!("page/explorer.js"),
    include_str!("page/main.js"),
];

/// The pages.
#[derive(Debug)]
pub(super) struct Pages {
    status: Page,
    login: Page,
    runbook: Page,
}

#[derive(Debug)]
struct Page {
    html: String,
    policy: HeaderValue,
}

impl Pages {
    pub(super) fn new() -> Self {
        Self {
            status: Page::new(include_str!("page/index.html"), &SCRIPT.concat()),
            login: Page::new(include_str!("page/login.html"), ""),
            runbook: Page::new(&include_str!("page/runbook.html").replace("{{content}}", &runbook::html()), ""),
        }
    }

    pub(super) fn status(&self) -> Response<ResponseBody> {
        self.status.answer(StatusCode::OK, Bytes::from(self.status.html.clone()))
    }

    pub(super) fn runbook(&self) -> Response<ResponseBody> {
        self.runbook.answer(StatusCode::OK, Bytes::from(self.runbook.html.clone()))
    }

    /// The login form, with the reason for which it is shown again. `fault` is a constant of the program, so it needs
    /// no escaping.
    pub(super) fn login(&self, status: StatusCode, fault: &'static str) -> Response<ResponseBody> {
        self.login.answer(status, self.login.html.replace("{{fault}}", fault).into())
    }
}

impl Page {
    fn new(template: &str, script: &str) -> Self {
        let html = template.replace("{{style}}", STYLE).replace("{{script}}", script);
        let script = if script.is_empty() { "'none'".to_owned() } else { source(script) };
        let policy = format!(
            "default-src 'none'; style-src {}; script-src {script}; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
            source(STYLE)
        );
        // Directives and base64 are always valid in a header. The default would forbid everything.
        let policy = HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
        Self { html, policy }
    }

    fn answer(&self, status: StatusCode, html: Bytes) -> Response<ResponseBody> {
        let mut response = text(status, "text/html; charset=utf-8", html);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_SECURITY_POLICY, self.policy.clone());
        // Not `no-referrer`, because browsers then send `Origin: null` with the page's own forms (Fetch, section 3.2).
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// The CSP source for an inline text: its hash.
fn source(text: &str) -> String {
    format!("'sha256-{}'", BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_one_document_that_names_no_other_host() {
        let pages = Pages::new();
        for page in [&pages.status, &pages.login, &pages.runbook] {
            assert!(!page.html.contains("{{style}}") && !page.html.contains("{{script}}"));
            assert!(page.html.contains(&format!("<style>{STYLE}</style>")), "the hash is of what stands there");
            for loaded in ["src=\"", "<link rel=\"stylesheet\"", " style=\"", " onclick"] {
                assert!(!page.html.contains(loaded), "{loaded}");
            }
        }
        assert!(!STYLE.contains("@import") && !STYLE.contains("url("));
        assert!(pages.status.html.contains(&format!("<script type=\"module\">{}</script>", SCRIPT.concat())));
    }
}
