//! `/cache/entries` and `/cache/purge`.

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::json;

use super::answer::{json_answer, refuse};
use super::requests::{self, EntriesQuery};
use super::state::AdminState;
use super::{body, status};
use crate::accounts::AccountId;
use crate::cache::PurgeReport;
use crate::request::body::ResponseBody;
use crate::stack;

/// The largest body of a purge, in bytes.
const MAX_PURGE: usize = 64 * 1024;

impl AdminState {
    pub(super) async fn entries(&self, query: &str) -> Response<ResponseBody> {
        let EntriesQuery { limit, after } = match EntriesQuery::parse(query) {
            Ok(asked) => asked,
            Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
        };
        let (store, clock) = (self.shared.store.clone(), self.shared.clock);
        // Every page is looked at, for which no request waits.
        let listing = tokio::task::spawn_blocking(move || store.entries(after.as_deref(), limit, clock.moment()));
        let Ok(entries) = listing.await else {
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "the entries cannot be listed; try again");
        };
        let next = (entries.len() == limit).then(|| entries.last().map(|entry| entry.key.to_string())).flatten();
        // Texts that were kept while they could be shown are not, once they may no longer be.
        let config = self.config.load_full();
        let accounts: Vec<_> = stack::accounts(&config).into_iter().map(|account| (account.id(), account)).collect();
        let name_of = |id: AccountId| match accounts.iter().find(|(known, _)| *known == id) {
            Some((_, account)) => account.name.to_string(),
            None => format!("not configured ({id})"),
        };
        let show_query = config.admin.show_queries;
        let entries: Vec<_> =
            entries.iter().map(|entry| status::entry(entry, &name_of(entry.account), show_query)).collect();
        json_answer(StatusCode::OK, &json!({"entries": entries, "next": next}))
    }

    pub(super) async fn purge(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let body = match body::read(request.into_body(), MAX_PURGE).await {
            Ok(body) => body,
            Err(refusal) => return refusal,
        };
        let config = self.config.load_full();
        let which = match requests::purge(&body, &stack::accounts(&config)) {
            Ok(which) => which,
            Err(message) => return refuse(StatusCode::BAD_REQUEST, &message),
        };
        let store = self.shared.store.clone();
        // A purge reads all pages and waits for the disk. In its own task it completes even if its client leaves.
        let purge = tokio::task::spawn_blocking(move || {
            let purged = store.purge(&which);
            tracing::info!(purged = purged.pages, "pages purged by request");
            purged
        });
        match purge.await {
            Ok(PurgeReport { pages, not_durable: None, shared: None }) => {
                json_answer(StatusCode::OK, &json!({"purged": pages}))
            }
            Ok(PurgeReport { pages, not_durable: None, shared: Some(shared) }) => {
                json_answer(StatusCode::OK, &json!({"purged": pages, "shared": shared}))
            }
            Ok(PurgeReport { not_durable: Some(why), .. }) => {
                let message = format!("purged, but purged pages may come back at the next start: {why}");
                refuse(StatusCode::INTERNAL_SERVER_ERROR, &message)
            }
            Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the purge failed; try it again"),
        }
    }
}
