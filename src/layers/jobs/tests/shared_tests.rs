//! Jobs that another replica gave out.

use super::*;
use crate::request::grants::MemoryGrants;

fn replica(grants: &Arc<MemoryGrants>) -> Rig {
    let mut jobs = twilio(|_, _| "COMPLETED");
    let rig = Rig::new(move |call: &UpstreamCall| match call.endpoint.operation {
        Operation::JobList => {
            let items = ["op_1", "op_2"].map(|id| job(id, "RUNNING")).join(",");
            (200, None, format!(r#"{{"items":[{items}],"meta":{{"pageSize":2,"nextToken":"next"}}}}"#))
        }
        _ => jobs(call),
    });
    let Shared { store, settings, draining, clock, .. } = &*rig.jobs.shared;
    let owners = JobOwners::default().shared_by(Arc::clone(grants) as _);
    let shared =
        Shared { store: store.clone(), owners, settings: *settings, draining: draining.clone(), clock: *clock };
    Rig { jobs: Jobs { shared: Arc::new(shared), ..rig.jobs }, ..rig }
}

#[tokio::test(start_paused = true)]
async fn jobs_and_their_tokens_hold_on_all_replicas() {
    let grants = Arc::<MemoryGrants>::default();
    let (one, two) = (replica(&grants), replica(&grants));
    let list = async |rig: &Rig, deny| {
        body(&rig.ask(with_policy(rig.query(Operation::JobList, ""), deny)).await.unwrap()).matches("op_").count()
    };
    let token =
        |rig: &Rig| rig.jobs.about(&rig.query(Operation::JobList, ""), Operation::JobList, "", "pageToken=next");
    assert!(two.ask(with_policy(two.query(Operation::JobStatus, "op_1"), "C.A")).await.is_err());
    assert_eq!(list(&two, "C.A").await, 0);
    one.ask(with_policy(one.submission(), "C.A")).await.unwrap();
    assert_eq!((list(&two, "C.A").await, list(&two, "C.B").await), (1, 0));
    for operation in [Operation::JobStatus, Operation::JobResults] {
        assert!(two.ask(with_policy(two.query(operation, "op_1"), "C.A")).await.is_ok());
        for (id, deny) in [("op_2", "C.A"), ("op_1", "C.B")] {
            assert!(two.ask(with_policy(two.query(operation, id), deny)).await.is_err(), "{id} {deny}");
        }
    }
    // A list that the other replica gave out.
    assert!(one.ask(with_policy(token(&one), "C.A")).await.is_ok());
    assert!(one.ask(with_policy(token(&one), "C.C")).await.is_err());
}
