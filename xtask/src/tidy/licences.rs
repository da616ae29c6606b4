//! Licences of what we build on: only such as let anybody use and change the whole.

use anyhow::{Context as _, Result};

/// Licences (SPDX) that go with ours, Apache-2.0.
const FINE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Every crate of others whose licence is not fine.
///
/// # Errors
/// When what `cargo metadata` printed is not understood.
pub fn check(metadata: &str) -> Result<Vec<String>> {
    let metadata: serde_json::Value =
        serde_json::from_str(metadata).context("cargo metadata prints no JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata tells no packages")?;
    Ok(packages
        .iter()
        .filter(|package| !package["source"].is_null())
        .filter_map(|package| {
            let licence = package["license"].as_str().unwrap_or("nothing");
            let name = package["name"].as_str().unwrap_or_default();
            (!fine(licence)).then(|| {
                format!(
                    "Cargo.lock: {name} is licensed under {licence}; choose another crate, or add the licence to xtask/src/tidy/licences.rs when it goes with Apache-2.0"
                )
            })
        })
        .collect())
}

/// Whether an SPDX expression leaves a choice that is fine. Of `A OR B` one is enough, of `A AND B`
/// both are needed; in the older form `A/B` means `A OR B`.
fn fine(expression: &str) -> bool {
    expression.split(" AND ").all(|needed| {
        let needed = needed.trim_matches(['(', ')', ' ']).replace('/', " OR ");
        needed.split(" OR ").any(|one| {
            let one = one.trim_matches(['(', ')', ' ']);
            // An exception only allows more.
            FINE.contains(&one.split(" WITH ").next().unwrap_or(one))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::fine;

    #[test]
    fn reads_licence_expressions() {
        for yes in [
            "MIT",
            "MIT/Apache-2.0",
            "Apache-2.0 / MIT",
            "GPL-3.0-only OR MIT",
            "(Apache-2.0 OR MIT) AND BSD-3-Clause",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(fine(yes), "{yes}");
        }
        for no in ["GPL-3.0-only", "MIT AND GPL-2.0-only", "nothing", "MPL-2.0 OR LGPL-2.1-only"] {
            assert!(!fine(no), "{no}");
        }
    }
}
