//! Owners by name, as `--chown` takes them.

use crate::tree::open_in;
use rustix::fs::OFlags;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Understands `USER[:GROUP]`: numbers, or names in the tree's `/etc/passwd` and `/etc/group`.
/// Without a group, a named user's own group is taken, and a number stands for both.
pub(crate) fn resolve(root: &OwnedFd, text: &str) -> Result<(u32, u32), String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let read = |path: &str| {
        let mut text = String::new();
        let file = open_in(root, Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK);
        if let Ok(file) = file {
            // A file that is no text has no names.
            let _ = File::from(file).read_to_string(&mut text);
        }
        text
    };
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u32>().ok());
    let missing = |what: &str, name: &str, file: &str| {
        format!("{what} {name:?} is not in {file} of the image")
    };
    let (uid, own) = match number(Some(user)) {
        Some(uid) => (uid, uid),
        None if user.is_empty() => (0, 0),
        None => {
            // passwd(5): name, password, uid, gid.
            let found = read("etc/passwd").lines().find_map(|line| {
                let mut fields = line.split(':');
                (fields.next() == Some(user)).then_some(())?;
                Some((number(fields.nth(1))?, number(fields.next())?))
            });
            found.ok_or_else(|| missing("user", user, "/etc/passwd"))?
        }
    };
    let gid = match group {
        None => own,
        Some(group) => match number(Some(group)) {
            Some(gid) => gid,
            None => {
                // group(5): name, password, gid.
                let found = read("etc/group").lines().find_map(|line| {
                    let mut fields = line.split(':');
                    (fields.next() == Some(group)).then_some(())?;
                    number(fields.nth(1))
                });
                found.ok_or_else(|| missing("group", group, "/etc/group"))?
            }
        },
    };
    Ok((uid, gid))
}
