//! Writes: create, update, patch, and the one way in which a new state is committed.
//!
//! Each write reads the object from the cache, computes the new state, and commits it in a transaction
//! guarded by the revision that it read (and by the namespace's, for new objects). What a rule of
//! admission claims (addresses, ports) is part of the same transaction.

use crate::State;
use crate::admission::{self, Claims, Operation, Request};
use crate::codec::{self, Cause};
use crate::model::{self, not_found, shown, stored, stored_kind, to_stored};
use crate::subresource;
use crate::types::{Actor, Object, Patch, Result, WriteOptions};
use crate::view::Key;
use dhow_kv::{Compare, Op, OpResult, Order, Range, Span, Target, Txn};
use dhow_objects::kinds::{self, Kind};
use dhow_objects::{Status, StatusCause, apply, meta, names, time};
use serde_json::{Value, json};
use std::sync::Arc;

/// How often a write that carries no resourceVersion is tried against writes of others.
const TRIES: usize = 16;

/// What only the platform puts into an object's metadata, and no write of a client changes.
const OURS: [&str; 4] =
    ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];

/// The key must be absent (`revision` 0) or have been written last at `revision`.
pub(crate) fn guard(key: impl Into<bytes::Bytes>, revision: u64) -> Compare {
    Compare {
        span: Span::Key(key.into()),
        order: Order::Equal,
        target: Target::ModRevision(i64::try_from(revision).unwrap_or(i64::MAX)),
    }
}

/// How a commit ended.
pub(crate) enum Committed {
    /// At this revision.
    At(u64),
    /// Somebody else wrote in between: look again.
    Lost,
    /// A claim is taken, and there is no other choice.
    Refused(Status),
}

/// Who writes to which object, or to its `subresource` ("" for the object), and how.
#[derive(Clone, Copy)]
pub(crate) struct Aim<'a> {
    pub(crate) actor: &'a Actor,
    pub(crate) kind: &'static Kind,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) options: &'a WriteOptions,
}

/// What is to be committed.
pub(crate) struct Commit<'a> {
    pub(crate) kind: &'static Kind,
    pub(crate) key: bytes::Bytes,
    /// The revision that the decision was based on, 0 when the key must be absent.
    pub(crate) based_on: u64,
    /// The new stored value; `None` deletes.
    pub(crate) value: Option<Vec<u8>>,
    /// Who writes: kept by itself for a while when the object goes.
    pub(crate) stamp: &'a Cause,
    /// More guards.
    pub(crate) guards: Vec<Compare>,
    /// What to claim and release.
    pub(crate) claims: &'a Claims,
}

impl Commit<'_> {
    /// The transaction; `remember` keeps who deleted the object. When a guard fails, it says which of
    /// the claims are taken.
    fn txn(self, lease: i64, remember: bool) -> Txn {
        let Self { key, based_on, value, stamp, guards, claims, .. } = self;
        let put = |key: bytes::Bytes, value: Vec<u8>| Op::Put {
            key,
            value: value.into(),
            lease,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        let mut txn = Txn { compare: vec![guard(key.clone(), based_on)], ..Txn::default() };
        txn.compare.extend(guards);
        txn.success.push(match value {
            Some(value) => put(key.clone(), value),
            None => Op::delete(key.clone()),
        });
        if remember && let Some(local) = key.strip_prefix(codec::ROOT.as_bytes()) {
            let stamp = serde_json::to_vec(stamp).unwrap_or_default();
            txn.success.push(put(codec::deletion_key(local), stamp));
        }
        for claim in &claims.wanted {
            txn.compare.push(guard(claim.key.clone(), 0));
            txn.success.push(Op::put(claim.key.clone(), key.clone()));
            let span = Span::Key(claim.key.clone());
            txn.failure.push(Op::Range(Range { keys_only: true, ..Range::all(span) }));
        }
        for key in &claims.released {
            txn.success.push(Op::delete(key.clone()));
        }
        txn
    }
}

/// Refuses a body of another kind than the path's.
fn check_type(kind: &Kind, value: &mut Value) -> Result<()> {
    let api_version = kind.api_version();
    let Some(object) = value.as_object_mut() else {
        return Err(Status::bad_request(format!("the body must be a {} object", kind.kind)));
    };
    let given = object.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    if !given.is_empty() && given != api_version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({given}) does not match the expected API version ({api_version})"
        )));
    }
    let given = object.get("kind").and_then(Value::as_str).unwrap_or_default();
    if !given.is_empty() && given != kind.kind {
        return Err(Status::bad_request(format!(
            "{given} in version {:?} cannot be handled as a {}",
            kind.version, kind.kind
        )));
    }
    object.insert("apiVersion".into(), json!(api_version));
    object.insert("kind".into(), json!(kind.kind));
    if !object.get("metadata").is_some_and(Value::is_object) {
        object.insert("metadata".into(), json!({}));
    }
    Ok(())
}

/// Refuses an object that says another name than the path's.
fn check_name(name: &str, value: &Value) -> Result<()> {
    let given = meta::name(value);
    if given.is_empty() || given == name {
        return Ok(());
    }
    Err(Status::bad_request(format!(
        "the name of the object ({given}) does not match the name on the URL ({name})"
    )))
}

/// Fills in the namespace, or refuses another than the path's.
fn check_namespace(kind: &Kind, namespace: &str, value: &mut Value) -> Result<()> {
    let given = meta::namespace(value);
    if kind.namespaced {
        if !given.is_empty() && given != namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        value["metadata"]["namespace"] = json!(namespace);
    } else if let Some(metadata) = meta::metadata_mut(value) {
        metadata.remove("namespace");
    }
    Ok(())
}

/// Refuses a new state that was made of another object, or of another revision of it, than there is.
fn check_preconditions(kind: &Kind, name: &str, new: &Value, old: &Value) -> Result<()> {
    let (given, uid) = (meta::resource_version(new), meta::uid(new));
    if !uid.is_empty() && uid != meta::uid(old) {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            meta::uid(old)
        );
        return Err(Status::conflict(kind.group, kind.plural, name, &why));
    }
    if !matches!(given, "" | "0") && given != meta::resource_version(old) {
        return Err(Status::modified(kind.group, kind.plural, name));
    }
    Ok(())
}

/// What a name is made from, when the object is to be given one; refuses an object without either.
fn prefix_of_name(kind: &Kind, value: &Value) -> Result<Option<String>> {
    let prefix = meta::generate_name(value);
    match (meta::name(value), prefix) {
        ("", "") => Err(invalid(
            kind,
            "",
            vec![StatusCause {
                reason: "FieldValueRequired".into(),
                message: "Required value: name or generateName is required".into(),
                field: "metadata.name".into(),
            }],
        )),
        ("", prefix) => Ok(Some(prefix.to_owned())),
        _ => Ok(None),
    }
}

fn invalid(kind: &Kind, name: &str, causes: Vec<StatusCause>) -> Status {
    Status::invalid(kind.group, kind.kind, name, causes)
}

impl State {
    /// The time that goes into metadata.
    pub(crate) fn now(&self) -> jiff::Timestamp {
        let now = self.shared.clock.now();
        jiff::Timestamp::from_nanosecond(i128::try_from(now.as_nanos()).unwrap_or(0))
            .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }

    pub(crate) fn new_uid(&self) -> String {
        let (a, b) = (self.shared.clock.random(), self.shared.clock.random());
        // RFC 9562, version 4.
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            a >> 32,
            (a >> 16) & 0xffff,
            a & 0xfff,
            0x8000 | ((b >> 48) & 0x3fff),
            b & 0xffff_ffff_ffff
        )
    }

    pub(crate) fn cause_stamp(&self, actor: &Actor) -> Cause {
        Cause::new(actor, self.shared.clock.now())
    }

    /// Commits one object's new state and waits until the cache shows it.
    pub(crate) async fn commit(&self, commit: Commit<'_>) -> Result<Committed> {
        let Commit { kind, value, .. } = &commit;
        dhow_fault::point("state::commit").map_err(Status::internal)?;
        // Events expire, and so does the memory of who deleted what. Leases of machines and events come
        // and go without anybody asking why.
        let is = |other: *const Kind| std::ptr::eq(*kind, other);
        let event = is(&raw const kinds::EVENT);
        let remember = value.is_none() && !event && !is(&raw const kinds::LEASE);
        let short_lived = (event && value.is_some()) || remember;
        let lease = if short_lived { self.event_lease().await? } else { 0 };
        let claims = commit.claims;
        let answer = stored(self.shared.kv.txn(commit.txn(lease, remember)).await)?;
        let revision = u64::try_from(answer.revision).unwrap_or(0);
        if answer.succeeded {
            self.shared.cache.reach(revision).await?;
            return Ok(Committed::At(revision));
        }
        for (claim, result) in claims.wanted.iter().zip(&answer.results) {
            if let OpResult::Range(found) = result
                && found.count > 0
                && let Some(refusal) = &claim.refusal
            {
                return Ok(Committed::Refused(refusal.clone()));
            }
        }
        self.sync().await?;
        Ok(Committed::Lost)
    }

    /// The object as a write returns it.
    pub(crate) fn written(
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        value: &[u8],
        revision: u64,
    ) -> Arc<Object> {
        Arc::new(codec::object(kind, namespace, name, value, revision))
    }

    /// Makes an object. `value` is what came over the wire, decoded.
    ///
    /// # Errors
    /// 409 when the name is taken, 404 or 403 for its namespace, 422 when it breaks rules.
    pub async fn create(
        &self,
        actor: &Actor,
        kind: &'static Kind,
        namespace: &str,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<Arc<Object>> {
        check_type(kind, &mut value)?;
        let target = stored_kind(kind);
        let value = to_stored(kind, value);
        let made = self.create_stored(actor, target, namespace, value, options, false).await?;
        Ok(shown(kind, &made))
    }

    /// Makes the object that an update to `name` did not find.
    ///
    /// # Errors
    /// As [`State::create`]; 400 when the object says another name.
    pub async fn create_named(
        &self,
        actor: &Actor,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<Arc<Object>> {
        check_type(kind, &mut value)?;
        check_name(name, &value)?;
        value["metadata"]["name"] = json!(name);
        self.create(actor, kind, namespace, value, options).await
    }

    /// `owned`: managedFields are settled (by an apply).
    async fn create_stored(
        &self,
        actor: &Actor,
        kind: &'static Kind,
        namespace: &str,
        mut value: Value,
        options: &WriteOptions,
        owned: bool,
    ) -> Result<Arc<Object>> {
        check_type(kind, &mut value)?;
        check_namespace(kind, namespace, &mut value)?;
        if !matches!(meta::resource_version(&value), "" | "0") {
            return Err(Status::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        if let Some(metadata) = meta::metadata_mut(&mut value) {
            for field in ["selfLink", "resourceVersion"].iter().chain(&OURS) {
                metadata.remove(*field);
            }
        }
        let prefix = prefix_of_name(kind, &value)?;
        kind.prepare_create(&mut value);
        let at = time::format(self.now());
        value["metadata"]["creationTimestamp"] = json!(at);
        for _ in 0..TRIES {
            self.sync().await?;
            let mut new = value.clone();
            if let Some(prefix) = &prefix {
                new["metadata"]["name"] =
                    json!(names::generate(prefix, self.shared.clock.random()));
            }
            let name = meta::name(&new).to_owned();
            let guards = admission::namespace::may_create(self, kind, namespace, &name)?;
            new["metadata"]["uid"] = json!(self.new_uid());
            kind.complete(&mut new);
            let request = Request {
                state: self,
                kind,
                namespace,
                name: &name,
                operation: Operation::Create,
                old: None,
            };
            let mut claims = Claims::default();
            if admission::mutate(&request, &mut new, &mut claims).await? {
                kind.complete(&mut new);
            }
            let causes = kind.validate_all(&new, None);
            if !causes.is_empty() {
                return Err(invalid(kind, &name, causes));
            }
            options.warn((kind.warnings)(&new, None));
            self.may_grant(actor, kind, namespace, &name, &new, None)?;
            if !owned {
                model::own(kind, actor, "", None, &mut new, &at);
            }
            let stamp = self.cause_stamp(actor);
            let bytes = codec::encode(kind, &new, Some(&stamp));
            let key = codec::object_key(kind, namespace, &name);
            if options.dry_run {
                if self.shared.cache.peek(kind, namespace, &name).is_some() {
                    return Err(Status::already_exists(kind.group, kind.plural, &name));
                }
                return Ok(Self::written(kind, namespace, &name, &bytes, 0));
            }
            let commit = Commit {
                kind,
                key,
                based_on: 0,
                value: Some(bytes.clone()),
                stamp: &stamp,
                guards,
                claims: &claims,
            };
            match self.commit(commit).await? {
                Committed::At(revision) => {
                    admission::created(self, kind, &name).await;
                    return Ok(Self::written(kind, namespace, &name, &bytes, revision));
                }
                Committed::Refused(refusal) => return Err(refusal),
                Committed::Lost => {}
            }
            if prefix.is_none() && self.shared.cache.peek(kind, namespace, &name).is_some() {
                return Err(Status::already_exists(kind.group, kind.plural, &name));
            }
        }
        Err(Status::conflict(
            kind.group,
            kind.plural,
            meta::name(&value),
            "too many others write at the same time; please try again",
        ))
    }

    /// Replaces an object, or its `subresource` (`status`, `scale`, ...); "" for the object.
    ///
    /// # Errors
    /// 404 when it does not exist, 409 when it is at another resourceVersion, 422 when the new
    /// state breaks rules.
    #[allow(clippy::too_many_arguments, reason = "the parts of a request, as the doors have them")]
    pub async fn update(
        &self,
        actor: &Actor,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        subresource: &str,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<Arc<Object>> {
        let target = stored_kind(kind);
        let aim = Aim { actor, kind: target, namespace, name, subresource, options };
        if subresource == "scale" {
            let make = |old: &Value| subresource::scaled(target, old, &value);
            let done = self.replace(aim, &make).await?;
            return subresource::scale_object(&done);
        }
        check_type(kind, &mut value)?;
        check_name(name, &value)?;
        let value = to_stored(kind, value);
        let make = |_: &Value| Ok(value.clone());
        let done = self.replace(aim, &make).await?;
        Ok(shown(kind, &done))
    }

    /// Patches an object or its subresource; retries on conflict when the patch carries no
    /// resourceVersion. The flag says whether it was created (apply).
    ///
    /// # Errors
    /// As [`State::update`]; 422 or 400 when the patch does not fit, 409 with causes when an apply
    /// would take fields of others.
    #[allow(clippy::too_many_arguments, reason = "the parts of a request, as the doors have them")]
    pub async fn patch(
        &self,
        actor: &Actor,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: Patch,
        options: &WriteOptions,
    ) -> Result<(Arc<Object>, bool)> {
        let target = stored_kind(kind);
        let aim = Aim { actor, kind: target, namespace, name, subresource, options };
        if let Patch::Apply { value, force } = patch {
            return self.apply(Aim { kind, ..aim }, value, force).await;
        }
        let scale = subresource == "scale";
        let own = (target.group, target.version, target.kind);
        let make = |old: &Value| {
            if scale {
                let names = ("autoscaling", "v1", "Scale");
                let view = subresource::scale_of(old);
                return subresource::scaled(
                    target,
                    old,
                    &model::patch(names, &view, &patch, options)?,
                );
            }
            if let Some(rewrite) = kind.from_storage {
                let mut view = old.clone();
                rewrite(&mut view);
                let names = (kind.group, kind.version, kind.kind);
                return Ok(to_stored(kind, model::patch(names, &view, &patch, options)?));
            }
            model::patch(own, old, &patch, options)
        };
        let done = self.replace(aim, &make).await?;
        let done = if scale { subresource::scale_object(&done)? } else { shown(kind, &done) };
        Ok((done, false))
    }

    async fn apply(
        &self,
        aim: Aim<'_>,
        mut value: Value,
        force: bool,
    ) -> Result<(Arc<Object>, bool)> {
        let Aim { actor, kind, namespace, name, subresource, options } = aim;
        if kind.from_storage.is_some() {
            return Err(Status::not_implemented(format!(
                "server-side apply to {} of {} is not implemented; use a merge patch",
                kind.plural, kind.group
            )));
        }
        let scale = subresource == "scale";
        if scale {
            value = subresource::applied_scale(kind, value)?;
        }
        check_type(kind, &mut value)?;
        check_namespace(kind, namespace, &mut value)?;
        check_name(name, &value)?;
        value["metadata"]["name"] = json!(name);
        if !value["metadata"]["managedFields"].is_null() {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        let applied = model::Applied {
            kind,
            configuration: value,
            manager: actor.manager.clone(),
            subresource: subresource.to_owned(),
            force,
        };
        self.sync().await?;
        let now = time::format(self.now());
        if self.shared.cache.peek(kind, namespace, name).is_none() {
            if !subresource.is_empty() {
                return Err(not_found(kind, name));
            }
            let fresh = model::apply(&applied, None, &now)?;
            let made = self.create_stored(actor, kind, namespace, fresh, options, true).await;
            match made {
                // Somebody was faster: apply to what they made.
                Err(refusal) if refusal.reason == "AlreadyExists" => {}
                made => return Ok((made?, true)),
            }
        }
        let make = |old: &Value| model::apply(&applied, Some(old), &now);
        let done = self.replace_owned(aim, &make, true).await?;
        Ok((if scale { subresource::scale_object(&done)? } else { done }, false))
    }

    /// Brings an object, or its `subresource`, into the state that `make` computes from the present
    /// one; `make` runs again when somebody else writes in between. When it changes nothing, nothing
    /// is written. For the platform's own writers.
    ///
    /// # Errors
    /// As [`State::update`], and what `make` refuses.
    pub async fn modify(
        &self,
        actor: &Actor,
        kind: &'static Kind,
        key: &Key,
        subresource: &str,
        make: &(dyn Fn(&Value) -> Result<Value> + Sync),
    ) -> Result<Arc<Object>> {
        let (namespace, name) = (key.namespace.as_str(), key.name.as_str());
        let options = &WriteOptions::default();
        let aim = Aim { actor, kind: stored_kind(kind), namespace, name, subresource, options };
        self.replace(aim, make).await
    }

    /// Brings an object into the state that `make` computes from the present one.
    pub(crate) async fn replace(
        &self,
        aim: Aim<'_>,
        make: &(dyn Fn(&Value) -> Result<Value> + Sync),
    ) -> Result<Arc<Object>> {
        self.replace_owned(aim, make, false).await
    }

    /// `owned`: `make` has settled managedFields itself.
    async fn replace_owned(
        &self,
        aim: Aim<'_>,
        make: &(dyn Fn(&Value) -> Result<Value> + Sync),
        owned: bool,
    ) -> Result<Arc<Object>> {
        let Aim { actor, kind, namespace, name, subresource, options } = aim;
        for _ in 0..TRIES {
            self.sync().await?;
            let current = self
                .shared
                .cache
                .peek(kind, namespace, name)
                .ok_or_else(|| not_found(kind, name))?;
            let old = current.to_value();
            let mut new = make(&old)?;
            check_preconditions(kind, name, &new, &old)?;
            check_type(kind, &mut new)?;
            check_name(name, &new)?;
            check_namespace(kind, namespace, &mut new)?;
            carry_over(&mut new, &old, name);
            let mut claims = Claims::default();
            self.settle(aim, &mut new, &old, &mut claims).await?;
            self.may_grant(actor, kind, namespace, name, &new, Some(&old))?;
            if !owned {
                let now = time::format(self.now());
                model::own(kind, actor, subresource, Some(&old), &mut new, &now);
            }
            new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
            if apply::same(&new, &old) {
                return Ok(Arc::new(current.copy()));
            }
            let stamp = self.cause_stamp(actor);
            let bytes = codec::encode(kind, &new, Some(&stamp));
            if options.dry_run {
                return Ok(Self::written(kind, namespace, name, &bytes, current.revision));
            }
            let gone = crate::delete::is_over(kind, &new);
            if gone {
                // What this write would claim is not claimed; what it had is free.
                claims = admission::release(kind, &old);
            }
            let commit = Commit {
                kind,
                key: codec::object_key(kind, namespace, name),
                based_on: current.revision,
                value: (!gone).then(|| bytes.clone()),
                stamp: &stamp,
                guards: Vec::new(),
                claims: &claims,
            };
            match self.commit(commit).await? {
                Committed::At(revision) => {
                    return Ok(Self::written(kind, namespace, name, &bytes, revision));
                }
                Committed::Refused(refusal) => return Err(refusal),
                Committed::Lost => {}
            }
        }
        Err(Status::modified(kind.group, kind.plural, name))
    }

    /// Defaults, admission and rules for an update.
    async fn settle(
        &self,
        aim: Aim<'_>,
        new: &mut Value,
        old: &Value,
        claims: &mut Claims,
    ) -> Result<()> {
        let Aim { kind, namespace, name, .. } = aim;
        match aim.subresource {
            "" | "scale" => {
                kind.complete(new);
                let request = Request {
                    state: self,
                    kind,
                    namespace,
                    name,
                    operation: Operation::Update,
                    old: Some(old),
                };
                if admission::mutate(&request, new, claims).await? {
                    kind.complete(new);
                }
                kind.prepare_update(new, old);
            }
            "status" if kind.has_status() => {
                kind.prepare_status_update(new, old);
                kind.complete(new);
            }
            // Each of these changes what the object's own rules forbid, and checks by itself.
            "binding" | "finalize" => {
                let status = new["status"].take();
                kind.prepare_update(new, old);
                if !status.is_null() {
                    new["status"] = status;
                }
                return Ok(());
            }
            other => {
                let part = kind.subresource(other).and_then(|below| below.part);
                let Some(part) = part else {
                    return Err(Status::not_implemented(format!(
                        "writing {}/{other} is not implemented",
                        kind.plural
                    )));
                };
                kind.complete(new);
                (part.keep)(new, old);
                kind.prepare_update(new, old);
                let causes = kind.validate_part(part, new, old);
                return if causes.is_empty() { Ok(()) } else { Err(invalid(kind, name, causes)) };
            }
        }
        let causes = kind.validate_all(new, Some(old));
        if !causes.is_empty() {
            return Err(invalid(kind, name, causes));
        }
        aim.options.warn((kind.warnings)(new, Some(old)));
        Ok(())
    }
}

/// What a client cannot change about an object's metadata.
fn carry_over(new: &mut Value, old: &Value, name: &str) {
    let Some(metadata) = meta::metadata_mut(new) else { return };
    metadata.insert("name".into(), json!(name));
    metadata.remove("selfLink");
    for field in OURS.iter().chain(&["generation"]) {
        match old["metadata"].get(field) {
            Some(value) => metadata.insert((*field).into(), value.clone()),
            None => metadata.remove(*field),
        };
    }
}
