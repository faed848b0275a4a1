//! Jobs and page tokens under policies. Decides which of them a client may use, and records which it gets.

use std::sync::Arc;

use super::answers::is_success;
use super::layer::{Jobs, Shared};
use super::owners::Scope;
use crate::cache::CacheResponse;
use crate::cache::response::Content;
use crate::core::error::{GatewayError, Reason};
use crate::request::grants;
use crate::request::key::Key;
use crate::request::query::{CanonicalQuery, ClientQuery};
use crate::twilio::endpoint::Operation;
use crate::twilio::job::{self, Job};
use crate::twilio::page;
use crate::twilio::parameters::Parameters;

impl<S> Jobs<S> {
    /// Refuses a job or a page token that was not given out in this scope.
    pub(super) async fn prove(&self, scope: &Scope, query: &ClientQuery) -> Result<(), GatewayError> {
        let (account, CanonicalQuery { path, parameters, .. }) = (&query.team.account, &*query.canonical);
        let Shared { owners, clock, .. } = &*self.shared;
        let job = query.endpoint.id(path).map(|id| Key::of_job(account, id));
        let token = Parameters::parse(parameters).ok().and_then(|parameters| parameters.page_token_alone());
        let token = token.map(|token| Key::of_path(account, query.endpoint, path, token.as_str(), b""));
        if let Some(learning) = owners.learn(scope, account, job.into_iter().chain(token), *clock) {
            learning.wait(&query.context.store_wait).await;
        }
        let is_refused = |key: Option<Key>| key.is_some_and(|key| !owners.has(scope, &key, *clock));
        let refuse = |message| Err(GatewayError::new(Reason::FieldNotAllowed, message));
        if is_refused(job) {
            return refuse(
                "this query job was not given to this team under its policy, or more than seven days ago: submit the \
                 query again",
            );
        }
        match is_refused(token) {
            false => Ok(()),
            true => refuse("this page token was not given to this team under its policy: begin with the first page"),
        }
    }

    /// Records the jobs and page tokens of an answer for this scope, and removes jobs of other scopes from a list.
    pub(super) async fn give(
        &self,
        scope: &Scope,
        query: &ClientQuery,
        response: &mut CacheResponse,
    ) -> Result<(), GatewayError> {
        if !is_success(response) {
            return Ok(());
        }
        let (account, path) = (&query.team.account, &query.canonical.path);
        let Shared { owners, clock, .. } = &*self.shared;
        let given = Arc::clone(response.representation());
        if query.endpoint.operation == Operation::JobList {
            if owners.are_shared() {
                let jobs = job::ids_of_list(&given.body).into_iter().map(|id| Key::of_job(account, &id));
                if let Some(learning) = owners.learn(scope, account, jobs, *clock) {
                    learning.wait(&query.context.store_wait).await;
                }
            }
            let own = |id: &str| owners.has(scope, &Key::of_job(account, id), *clock);
            let left = job::list_of(&given.body, own).ok_or_else(|| {
                GatewayError::new(Reason::UpstreamInvalid, "Twilio answered with something that is not a list of jobs")
            })?;
            let key = match &response.content {
                Content::Stored(entry) => entry.key_param,
                Content::Forwarded(_, key) => *key,
            };
            response.content = Content::Forwarded(Arc::new(given.with_body(left)), key);
        }
        let keys: Vec<_> = match query.endpoint.operation {
            Operation::JobSubmit => {
                let id = Job::read(&given.body).and_then(|job| job.id);
                id.into_iter().map(|id| Key::of_job(account, &id)).collect()
            }
            _ => page::tokens(&given.body)
                .map(|token| Parameters::of_page(&token))
                .map(|token| Key::of_path(account, query.endpoint, path, token.as_str(), b""))
                .collect(),
        };
        if let Some(giving) = owners.give(scope, account, &keys, *clock) {
            grants::share_before_answer(giving, response.outcome, &query.context.store_wait).await;
        }
        Ok(())
    }
}

/// The scope of the jobs that a client may see, if its team has a policy.
pub(super) fn scope(query: &ClientQuery) -> Option<Scope> {
    let account = &query.team.account;
    query.team.policy.as_ref().map(|policy| policy.scope(&account.sid, &account.origin))
}
