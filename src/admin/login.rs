//! `/login` and `/logout`: sessions for browsers, which cannot send `Authorization` by themselves.

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use zeroize::Zeroizing;

use super::access::{Access, NOT_OURS, is_token};
use super::answer::{foreign, not_allowed, refuse, see};
use super::body;
use super::sessions::{COOKIE, SessionId, TokenInUse};
use super::state::AdminState;
use crate::request::body::ResponseBody;
use crate::semantics::origin;

/// The largest form, in bytes: the token and the name of its field.
const MAX_FORM: usize = 4096;

/// Said on the form after a wrong token.
const WRONG: &str = "This is not the admin token. Use the token whose SHA-256 is admin.token_sha256 in the \
                     configuration. A team’s token does not work here.";

impl AdminState {
    pub(super) async fn login(&self, request: Request<Incoming>, access: Access) -> Response<ResponseBody> {
        let Some(expected) = self.token() else { return see("/") };
        match *request.method() {
            Method::GET | Method::HEAD if access.is_granted() => see("/"),
            Method::GET | Method::HEAD => self.pages.login(StatusCode::OK, ""),
            Method::POST => self.log_in(request, expected).await,
            _ => not_allowed("GET, HEAD, POST"),
        }
    }

    async fn log_in(&self, request: Request<Incoming>, expected: TokenInUse) -> Response<ResponseBody> {
        // Another site's page must not open a session in this browser, not even if that page knows a valid token.
        if origin::is_cross_site(&request, &[]) {
            return foreign(NOT_OURS);
        }
        let form = match body::read(request.into_body(), MAX_FORM).await {
            Ok(form) => Zeroizing::new(form.to_vec()),
            Err(refusal) => return refusal,
        };
        let token = field(&form, "token");
        if !token.as_ref().is_some_and(|token| is_token(token, expected.sha256)) {
            let delay = self.sessions.failed(self.shared.clock);
            tokio::time::sleep(delay).await;
            tracing::warn!("a wrong token was given at the admin plane's login");
            return self.pages.login(StatusCode::UNAUTHORIZED, WRONG);
        }
        let Some(id) = self.sessions.begin(expected, self.shared.clock) else {
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "the system gives no random bytes; try again");
        };
        let mut response = see("/");
        set_cookie(
            response.headers_mut(),
            &Zeroizing::new(format!("{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict", *id)),
        );
        response
    }

    pub(super) fn logout(&self, request: &Request<Incoming>) -> Response<ResponseBody> {
        if *request.method() != Method::POST {
            return not_allowed("POST");
        }
        if origin::is_cross_site(request, &[]) {
            return foreign(NOT_OURS);
        }
        if let Some(id) = SessionId::of(request.headers()) {
            self.sessions.end(id);
        }
        let mut response = see("/login");
        set_cookie(response.headers_mut(), &format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"));
        response
    }
}

fn set_cookie(headers: &mut HeaderMap, cookie: &str) {
    // A cookie's name and its value are always valid in a header.
    if let Ok(mut value) = HeaderValue::from_str(cookie) {
        value.set_sensitive(true);
        headers.insert(header::SET_COOKIE, value);
    }
}

/// A field of a form (`application/x-www-form-urlencoded`); `None` if the form has it more than once.
fn field(form: &[u8], name: &str) -> Option<Zeroizing<String>> {
    let mut found = form.split(|byte| *byte == b'&').filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        (&pair[..at] == name.as_bytes()).then(|| &pair[at + 1..])
    });
    let (value, None) = (found.next()?, found.next()) else { return None };
    let mut decoded = Zeroizing::new(Vec::with_capacity(value.len()));
    let mut rest = value.iter();
    while let Some(byte) = rest.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(*rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => *other,
        });
    }
    Some(Zeroizing::new(std::str::from_utf8(&decoded).ok()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_read_once_and_decoded() {
        let read = |form: &str| field(form.as_bytes(), "token").map(|value| value.to_string());
        assert_eq!(read("token=igw_a-b").as_deref(), Some("igw_a-b"));
        assert_eq!(read("x=1&token=a%2Bb+c%C3%A4&y").as_deref(), Some("a+b cä"));
        for form in ["", "token", "tokens=a", "token=a&token=a", "token=%2", "token=%zz", "token=%ff"] {
            assert_eq!(read(form), None, "{form}");
        }
    }
}
