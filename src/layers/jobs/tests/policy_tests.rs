//! Jobs under policies.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_job_belongs_to_the_policy_under_which_it_was_given_out() {
    let mut jobs = twilio(|_, _| "COMPLETED");
    let rig = Rig::new(move |call: &UpstreamCall| match call.endpoint.operation {
        Operation::JobList => {
            let list = format!(
                r#"{{"items":[{},{}],"meta":{{"pageSize":2,"nextToken":"next"}}}}"#,
                job("op_1", "RUNNING"),
                job("op_2", "RUNNING")
            );
            (200, None, list)
        }
        _ => jobs(call),
    });
    let token = |operation: Operation, token: &str| {
        rig.jobs.about(&rig.query(operation, "op_1"), operation, "op_1", &format!("pageToken={token}"))
    };
    rig.submit().await;
    let about = |operation| rig.query(operation, "op_1");
    for operation in [Operation::JobStatus, Operation::JobResults] {
        let refused = rig.ask(with_policy(about(operation), "C.A")).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::FieldNotAllowed);
        assert!(rig.ask(about(operation)).await.is_ok(), "without a policy all jobs of the account are visible");
    }
    assert_eq!(body(&rig.ask(with_policy(about(Operation::JobList), "C.A")).await.unwrap()).matches("op_").count(), 0);
    // A team that submits the same query shares the job, and from then on the job belongs to its policy too.
    assert_eq!(rig.ask(with_policy(rig.submission(), "C.A")).await.unwrap().outcome, Outcome::Hit);
    for operation in [Operation::JobStatus, Operation::JobResults] {
        assert!(rig.ask(with_policy(about(operation), "C.A")).await.is_ok());
        assert!(rig.ask(with_policy(about(operation), "C.B")).await.is_err(), "of another policy");
    }
    let list = body(&rig.ask(with_policy(about(Operation::JobList), "C.A")).await.unwrap());
    assert_eq!(list, format!(r#"{{"items":[{}],"meta":{{"pageSize":1,"nextToken":"next"}}}}"#, job("op_1", "RUNNING")));
    assert!(rig.ask(with_policy(token(Operation::JobList, "next"), "C.A")).await.is_ok());
    for (operation, name, deny) in [
        (Operation::JobList, "next", "C.B"),
        (Operation::JobList, "other", "C.A"),
        (Operation::JobResults, "next", "C.A"),
    ] {
        assert!(rig.ask(with_policy(token(operation, name), deny)).await.is_err(), "{operation:?} {name} {deny}");
    }
}
