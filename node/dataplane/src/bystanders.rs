//! Other programs' filters that would drop what pods send.
//!
//! A verdict to accept counts only in its own chain, so a foreign chain that drops forwarded packets
//! by default (Docker sets that policy when it turns forwarding on) needs a rule of ours at its
//! head. The rules carry our instance in their comment and go with `purge`.

use crate::{Config, Error};
use dhow_kernel::net::Socket;
use dhow_kernel::net::nft::{Expressions, Transaction};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Tables and chains of others that hold rules of ours.
pub(crate) type Admitted = Arc<Mutex<HashSet<(String, String)>>>;

fn mark(node: &str, instance: &str) -> String {
    format!("node:{node}@0 {instance}")
}

fn is_ours(comment: &str, instance: &str) -> bool {
    comment.starts_with("node:") && comment.rsplit_once(' ').is_some_and(|(_, i)| i == instance)
}

/// Lets packets of pods pass through every foreign chain that would drop them by default.
pub(crate) fn admit(nft: &mut Socket, config: &Config, into: &Admitted) -> Result<(), Error> {
    let wrap = |e| Error::kernel("let pods pass through other programs' filters", &e);
    let present = nft.nft_rules(None).map_err(wrap)?;
    for chain in nft.nft_chains(None).map_err(wrap)? {
        let admitted = present.iter().any(|r| {
            r.table == chain.table && r.chain == chain.name && is_ours(&r.comment, &config.name)
        });
        if !chain.drops_forwarded || chain.table == config.name {
            continue;
        }
        into.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((chain.table.clone(), chain.name.clone()));
        if admitted {
            continue;
        }
        tracing::info!(
            table = chain.table,
            chain = chain.name,
            "pods are let through a foreign filter"
        );
        let owner = mark(&config.node_name, &config.name);
        let mut change = Transaction::new(&chain.table);
        let (mut incoming, mut outgoing) = (Expressions::new(), Expressions::new());
        incoming.input_name(0).equal(0, config.name.as_bytes()).accept();
        outgoing.output_name(0).equal(0, config.name.as_bytes()).accept();
        change.rule_at_head(&chain.name, &incoming, &owner);
        change.rule_at_head(&chain.name, &outgoing, &owner);
        change.commit(nft).map_err(wrap)?;
    }
    Ok(())
}

/// Takes our rules out of other programs' chains.
pub(crate) fn withdraw(nft: &mut Socket, instance: &str) -> Result<(), dhow_kernel::net::Error> {
    for rule in nft.nft_rules(None)? {
        if rule.table != instance && is_ours(&rule.comment, instance) {
            let mut change = Transaction::new(&rule.table);
            change.delete_rule(&rule.chain, rule.handle);
            change.commit(nft)?;
        }
    }
    Ok(())
}
