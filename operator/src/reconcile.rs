//! The shell: observe, plan, perform. Every action may be the last one before this process ends, and may be repeated.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dfs_core::ids::ServerId;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::{
    Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions,
    ValidationDirective,
};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::controller::Action as Requeue;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource as _, ResourceExt as _};
use serde_json::{Value, json};

use crate::command::{Command, PREFIX};
use crate::crd::DistributedFS;
use crate::crd::status::{DistributedFSStatus, LastCommand, condition};
use crate::master::{Failed, Master};
use crate::metrics::Metrics;
use crate::names::{self, MANAGER};
use crate::observe::{self, LeaseClock};
use crate::plan::{self, Action, On};
use crate::resources;

const CALM: Duration = Duration::from_secs(5);
const BUSY: Duration = Duration::from_secs(1);
const AFTER_ERROR: Duration = Duration::from_secs(10);
/// What was applied is applied again after so long, whoever changed it meanwhile.
const APPLY_AGAIN: Duration = Duration::from_secs(60);
/// An ended pod is back by then, or its chunks get copies elsewhere.
const RENEWAL_MAX: Duration = Duration::from_secs(600);
/// Bytes of an Event's action, as the API server takes it.
const ACTION_MAX: usize = 128;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Kubernetes: {0}")]
    Kube(#[from] kube::Error),
    #[error("{what}: {error}")]
    At { what: String, error: Box<kube::Error> },
    #[error("master: {0}")]
    Master(String),
    #[error("random numbers: {0}")]
    Random(String),
}

fn at(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let what = what.into();
    move |error| Error::At { what, error: Box::new(error) }
}

/// By uid of the resource, kind and name: digest of what was applied, and when.
type Applied = BTreeMap<(String, String, String), (String, Instant)>;

/// What all reconciles of this process share.
#[expect(missing_debug_implementations, reason = "kube's Recorder has none")]
pub struct Context {
    pub client: Client,
    pub recorder: Recorder,
    pub image: String,
    pub metrics: Arc<Metrics>,
    applied: Mutex<Applied>,
    /// By uid: why the last server may not go.
    refused: Mutex<BTreeMap<String, String>>,
    leases: Mutex<LeaseClock>,
    /// By uid: the last trouble of a pod that was told.
    troubles: Mutex<BTreeMap<String, String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Context {
    #[must_use]
    pub fn new(client: Client, recorder: Recorder, image: String, metrics: Arc<Metrics>) -> Self {
        Self {
            client,
            recorder,
            image,
            metrics,
            applied: Mutex::default(),
            refused: Mutex::default(),
            leases: Mutex::default(),
            troubles: Mutex::default(),
        }
    }
}

/// One round for one file system.
///
/// # Errors
/// If the API server refused or did not answer; the round is tried again later.
pub async fn reconcile(fs: Arc<DistributedFS>, context: Arc<Context>) -> Result<Requeue, Error> {
    let began = Instant::now();
    let result = Box::pin(round(&fs, &context)).await;
    let word = if result.is_ok() { "ok" } else { "error" };
    context.metrics.reconciled(word, began.elapsed());
    result
}

/// What to do after an error: again, later.
#[must_use]
pub fn after_error(fs: Arc<DistributedFS>, error: &Error, _: Arc<Context>) -> Requeue {
    tracing::warn!(file_system = %fs.name_any(), %error, "not done");
    Requeue::requeue(AFTER_ERROR)
}

async fn round(fs: &DistributedFS, context: &Context) -> Result<Requeue, Error> {
    let api: Api<DistributedFS> = Api::namespaced(context.client.clone(), &names::namespace(fs));
    // As it is now: what woke us may be older than what we wrote last.
    let Some(fs) = api.get_opt(&fs.name_any()).await? else { return Ok(Requeue::await_change()) };
    let mut seen = observe::observe(&context.client, &fs, &context.leases).await?;
    seen.observed.operator_image.clone_from(&context.image);
    let uid = fs.uid().unwrap_or_default();
    seen.observed.drain_refused = lock(&context.refused).get(&uid).cloned();
    for ((of, kind, name), (digest, when)) in lock(&context.applied).iter() {
        // Sets say themselves what was applied to them.
        let known = seen.observed.applied.contains_key(&(kind.clone(), name.clone()));
        if *of == uid && when.elapsed() < APPLY_AGAIN && !known && !is_set(kind) {
            seen.observed.applied.insert((kind.clone(), name.clone()), digest.clone());
        }
    }
    let plan = plan::plan(&fs, &seen.observed, Timestamp::now());
    let busy = !plan.actions.is_empty();
    let removed = plan.actions.contains(&Action::RemoveFinalizer);
    let mut status = plan.status;
    let told = match &plan.problem {
        Some((_, words)) => lock(&context.troubles).insert(uid.clone(), words.clone()),
        None => lock(&context.troubles).remove(&uid),
    };
    if let Some((reason, words)) = &plan.problem
        && told.as_ref() != Some(words)
    {
        publish(&fs, context, true, reason, words, words).await;
    }
    let mut outcome = Ok(());
    for action in plan.actions {
        outcome = perform(&fs, context, seen.master.as_ref(), action, &mut status).await;
        if outcome.is_err() {
            break;
        }
    }
    if let Err(error) = &outcome {
        stall(&mut status, &error.to_string(), fs.metadata.generation);
    }
    if fs.metadata.deletion_timestamp.is_none() {
        tell(&fs, context, &status).await;
    }
    // With its last finalizer it is gone, and a patch would be about nothing.
    if !removed && fs.status.as_ref() != Some(&status) {
        patch_status(&api, &fs, &status).await?;
    }
    outcome?;
    Ok(Requeue::requeue(if busy { BUSY } else { CALM }))
}

fn is_set(kind: &str) -> bool {
    matches!(kind, "StatefulSet" | "DaemonSet")
}

/// What a person must see when the API server refuses what we want.
fn stall(status: &mut DistributedFSStatus, error: &str, generation: Option<i64>) {
    if let Some(stalled) = status.conditions.iter_mut().find(|c| c.type_ == condition::STALLED) {
        if stalled.status != "True" {
            stalled.last_transition_time =
                k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now());
        }
        stalled.status = "True".to_owned();
        stalled.reason = "Refused".to_owned();
        stalled.message = format!("{error}; tried again every {} s", AFTER_ERROR.as_secs());
        stalled.observed_generation = generation;
    }
}

async fn patch_status(
    api: &Api<DistributedFS>,
    fs: &DistributedFS,
    status: &DistributedFSStatus,
) -> Result<(), Error> {
    let body = json!({
        "apiVersion": DistributedFS::api_version(&()),
        "kind": DistributedFS::kind(&()),
        "metadata": {"name": fs.name_any()},
        "status": status,
    });
    api.patch_status(&fs.name_any(), &PatchParams::apply(MANAGER).force(), &Patch::Apply(&body))
        .await
        .map_err(at("write the status"))?;
    Ok(())
}

/// Events alike in reason and `action` are one that is counted, with the note of the first: what must be read each time
/// has an action of its own.
async fn publish(
    fs: &DistributedFS,
    context: &Context,
    warning: bool,
    reason: &str,
    action: &str,
    note: &str,
) {
    let mut note = note.to_owned();
    // The API server's limit.
    if 1000 < note.len() {
        note = note.chars().take(900).collect();
    }
    let event = Event {
        type_: if warning { EventType::Warning } else { EventType::Normal },
        reason: reason.to_owned(),
        note: Some(note),
        action: shortened(action),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &fs.object_ref(&())).await {
        tracing::warn!(%error, reason, "event not written");
    }
}

/// The beginning of an Event's action.
fn shortened(action: &str) -> String {
    let mut short = String::new();
    for letter in action.chars() {
        if ACTION_MAX < short.len() + letter.len_utf8() {
            break;
        }
        short.push(letter);
    }
    short
}

/// An Event for each condition that turned, or holds for another reason.
async fn tell(fs: &DistributedFS, context: &Context, status: &DistributedFSStatus) {
    let old = fs.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    for (kind, good) in [
        (condition::READY, "True"),
        (condition::DATA_SAFE, "True"),
        (condition::DEGRADED, "False"),
        (condition::STALLED, "False"),
    ] {
        let find = |list: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition]| {
            list.iter()
                .find(|c| c.type_ == kind)
                .map(|c| (c.status.clone(), c.reason.clone(), c.message.clone()))
        };
        let (Some((state, reason, message)), before) = (find(&status.conditions), find(old)) else {
            continue;
        };
        let was = before.as_ref().map(|(state, reason, _)| (state.as_str(), reason.as_str()));
        // A file system that was just made is not yet anything: that is no news.
        let news = match was {
            None => state == good && kind == condition::READY,
            Some(was) => was != (state.as_str(), reason.as_str()),
        };
        if news {
            // While it is being made much is not so yet; and short chunks are told by `DataSafe`.
            let making = status.phase == "Creating" && kind != condition::STALLED;
            let twice = kind == condition::DEGRADED && reason == "ChunksShort";
            if making || twice {
                continue;
            }
            let word = match kind {
                condition::READY | condition::DATA_SAFE if state == good => kind,
                _ => &reason,
            };
            publish(fs, context, state != good, word, "Observe", &message).await;
        }
    }
}

async fn perform(
    fs: &DistributedFS,
    context: &Context,
    master: Option<&Master>,
    action: Action,
    status: &mut DistributedFSStatus,
) -> Result<(), Error> {
    let (namespace, uid) = (names::namespace(fs), fs.uid().unwrap_or_default());
    match action {
        Action::AddFinalizer => finalizer(fs, context, &[names::FINALIZER]).await,
        Action::RemoveFinalizer => {
            let name = fs.name_any();
            publish(
                fs,
                context,
                false,
                "Deleted",
                "Delete",
                &format!("the mounts of {name} are gone; its pods and Services follow"),
            )
            .await;
            finalizer(fs, context, &[]).await
        }
        Action::MakeKey => make_key(fs, context).await,
        Action::Apply(object) => {
            let (kind, name) = plan::identity(&object);
            let digest = object["metadata"]["annotations"][names::APPLIED]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            apply(&context.client, &namespace, &object).await?;
            lock(&context.applied).insert((uid, kind, name), (digest, Instant::now()));
            Ok(())
        }
        Action::DeleteMount => {
            let name = names::mount(&fs.name_any());
            let api: Api<k8s_openapi::api::apps::v1::DaemonSet> =
                Api::namespaced(context.client.clone(), &namespace);
            gone(api.delete(&name, &DeleteParams::background()).await.map(drop))
                .map_err(at(format!("delete DaemonSet {name}")))
        }
        Action::TellZone { pod, zone } => {
            let api: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
            let patch = json!({"metadata": {"annotations": {names::ZONE: zone}}});
            gone(api.patch(&pod, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop))
                .map_err(at(format!("tell pod {pod} its zone")))
        }
        Action::MakeLease { server, pod, uid } => make_lease(fs, context, server, &pod, &uid).await,
        Action::Run { name, value, on, command } => {
            run(fs, context, master, Asked { name, value, on }, command, status).await
        }
        Action::Drain { server } => {
            let refused =
                match on_master(
                    master,
                    |m| async move { m.drain(&server.to_string(), false).await },
                )
                .await
                {
                    Ok(_) => {
                        publish(
                            fs,
                            context,
                            false,
                            "Draining",
                            "ScaleDown",
                            &format!("{server} is emptied before it goes"),
                        )
                        .await;
                        None
                    }
                    Err(Failed::Refused(why)) => Some(why),
                    Err(Failed::Silent(why)) => return Err(Error::Master(why)),
                };
            match refused {
                Some(why) => lock(&context.refused).insert(uid, why),
                None => lock(&context.refused).remove(&uid),
            };
            Ok(())
        }
        Action::EndDrain { server } => {
            lock(&context.refused).remove(&uid);
            on_master(master, |m| async move { m.drain(&server.to_string(), true).await })
                .await
                .map_err(failed)?;
            Ok(())
        }
        Action::EndMaintenance { server } => {
            on_master(master, |m| async move { m.maintenance(&server.to_string(), None).await })
                .await
                .map_err(failed)?;
            Ok(())
        }
        Action::Decommission { server } => {
            on_master(master, |m| async move { m.decommission(&server.to_string()).await })
                .await
                .map_err(failed)?;
            publish(
                fs,
                context,
                false,
                "Decommissioned",
                "ScaleDown",
                &format!("{server} is empty and leaves for good"),
            )
            .await;
            Ok(())
        }
        Action::Renew { pod, uid, server } => {
            if let Some(server) = server {
                on_master(master, |m| async move {
                    m.maintenance(&server.to_string(), Some(RENEWAL_MAX)).await
                })
                .await
                .map_err(failed)?;
            }
            let api: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
            // Exactly the one that was looked at: its successor has the same name.
            let only = DeleteParams {
                preconditions: Some(Preconditions { uid: Some(uid), resource_version: None }),
                ..DeleteParams::default()
            };
            gone(api.delete(&pod, &only).await.map(drop))
                .map_err(at(format!("delete pod {pod}")))?;
            publish(
                fs,
                context,
                false,
                "Renewing",
                "Update",
                &format!("pod {pod} ran an old specification and was ended"),
            )
            .await;
            Ok(())
        }
    }
}

fn failed(error: Failed) -> Error {
    Error::Master(error.to_string())
}

async fn on_master<'a, T, F>(
    master: Option<&'a Master>,
    call: impl FnOnce(&'a Master) -> F,
) -> Result<T, Failed>
where
    F: Future<Output = Result<T, Failed>>,
{
    match master {
        Some(master) => call(master).await,
        None => Err(Failed::Silent("there is none".to_owned())),
    }
}

/// Deleted already is as good; so is one that took its place.
fn gone(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        other => other,
    }
}

/// The finalizers that are ours, as a whole: what is left out goes.
async fn finalizer(fs: &DistributedFS, context: &Context, ours: &[&str]) -> Result<(), Error> {
    let api: Api<DistributedFS> = Api::namespaced(context.client.clone(), &names::namespace(fs));
    let body = json!({
        "apiVersion": DistributedFS::api_version(&()),
        "kind": DistributedFS::kind(&()),
        // Of this one only: an apply would make another in its place.
        "metadata": {"name": fs.name_any(), "uid": fs.uid(), "finalizers": ours},
    });
    let params = PatchParams::apply(names::FINALIZER_MANAGER).force();
    gone(api.patch(&fs.name_any(), &params, &Patch::Apply(&body)).await.map(drop))
        .map_err(at("change the finalizer"))
}

async fn make_key(fs: &DistributedFS, context: &Context) -> Result<(), Error> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| Error::Random(error.to_string()))?;
    let key: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let secret: Secret = serde_json::from_value(resources::key_secret(fs, &key))
        .map_err(|error| Error::Kube(kube::Error::SerdeError(error)))?;
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &names::namespace(fs));
    match api.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            publish(fs, context, false, "KeyMade", "Create", "the cluster key was made").await;
            Ok(())
        }
        // Another operator was faster: its key is the key.
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(at("make the cluster key's Secret")(error)),
    }
}

async fn apply(client: &Client, namespace: &str, object: &Value) -> Result<(), Error> {
    let (kind, name) = plan::identity(object);
    let (group, version) = match object["apiVersion"].as_str().unwrap_or_default().split_once('/') {
        Some((group, version)) => (group, version),
        None => ("", "v1"),
    };
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let params = PatchParams {
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::apply(MANAGER).force()
    };
    api.patch(&name, &params, &Patch::Apply(object))
        .await
        .map_err(at(format!("apply {kind} {name}")))?;
    Ok(())
}

async fn make_lease(
    fs: &DistributedFS,
    context: &Context,
    server: ServerId,
    pod: &str,
    uid: &str,
) -> Result<(), Error> {
    let name = names::lease(&fs.name_any(), &server.to_string());
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": name, "namespace": names::namespace(fs), "labels": names::labels(&fs.name_any()),
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}],
        },
        "spec": {"leaseDurationSeconds": 40},
    });
    let lease = serde_json::from_value(lease)
        .map_err(|error| Error::Kube(kube::Error::SerdeError(error)))?;
    let api: Api<k8s_openapi::api::coordination::v1::Lease> =
        Api::namespaced(context.client.clone(), &names::namespace(fs));
    match api.create(&PostParams::default(), &lease).await {
        Ok(_) => Ok(()),
        // That of the pod before is still there: the garbage collector takes it with its owner, and then it is our turn.
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(at(format!("make Lease {name}"))(error)),
    }
}

/// A command as it was typed, and where.
struct Asked {
    name: String,
    value: String,
    on: On,
}

/// First the wish, then what came of it, then the annotation goes: cut off between two, all of it is done again.
async fn run(
    fs: &DistributedFS,
    context: &Context,
    master: Option<&Master>,
    asked: Asked,
    command: Result<Command, String>,
    status: &mut DistributedFSStatus,
) -> Result<(), Error> {
    let Asked { name, value, on } = asked;
    let (result, message) = match &command {
        Err(why) => ("Invalid", why.clone()),
        Ok(command) => match on_master(master, |m| m.run(command)).await {
            Ok(words) => ("Done", words),
            Err(Failed::Refused(why)) => {
                // Late since the plan was made: then that is why, and the next round asks again.
                let report = on_master(master, Master::report).await.map_err(failed)?;
                if let Some(server) = plan::undecided(&report, command) {
                    tracing::info!(name, value, %server, why, "waits for a server that is suspect");
                    return Ok(());
                }
                ("Refused", why)
            }
            // Tried again: the annotation stays.
            Err(Failed::Silent(why)) => return Err(Error::Master(why)),
        },
    };
    status.last_command = Some(LastCommand {
        name: name.clone(),
        value: value.clone(),
        requested_at: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        result: result.to_owned(),
        message: message.clone(),
    });
    let api: Api<DistributedFS> = Api::namespaced(context.client.clone(), &names::namespace(fs));
    patch_status(&api, fs, status).await?;
    let mut reason = name.clone();
    if let Some(first) = reason.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let typed = format!("{name}={value}");
    let (reason, note) = (format!("{reason}{result}"), format!("{typed}: {message}"));
    publish(fs, context, result != "Done", &reason, &typed, &note).await;
    let key = format!("{PREFIX}{name}").replace('~', "~0").replace('/', "~1");
    let path = format!("/metadata/annotations/{key}");
    // Another value typed meanwhile stays.
    let patch: Patch<Value> = Patch::Json(
        serde_json::from_value(json!([
            {"op": "test", "path": path, "value": value},
            {"op": "remove", "path": path},
        ]))
        .map_err(|error| Error::Kube(kube::Error::SerdeError(error)))?,
    );
    let params = PatchParams::default();
    let removed = match &on {
        On::Resource => api.patch(&fs.name_any(), &params, &patch).await.map(drop),
        On::Pod(pod) => {
            let pods: Api<Pod> = Api::namespaced(context.client.clone(), &names::namespace(fs));
            pods.patch(pod, &params, &patch).await.map(drop)
        }
    };
    match removed {
        Err(kube::Error::Api(status)) if status.is_invalid() || status.is_not_found() => Ok(()),
        other => other.map_err(at(format!("take the annotation {name} off"))),
    }
}
