//! Rules of restarting single containers (`restartPolicy` and `restartPolicyRules`).

use super::super::check::Checks;
use super::super::column::{items, text};
use serde_json::Value;

const POLICIES: &[&str] = &["Always", "Never", "OnFailure"];
const MOST_RULES: usize = 20;
const MOST_CODES: usize = 255;

/// Of an ordinary container or one of initialization. `RestartAllContainers`, upstream's other
/// action, is not carried out, and so not taken either.
pub(super) fn validate(checks: &mut Checks, at: &str, container: &Value) {
    let rules = items(container, "/restartPolicyRules");
    match container.get("restartPolicy").and_then(Value::as_str) {
        None if rules.is_empty() => return,
        None => checks.required(
            &format!("{at}.restartPolicy"),
            "must specify restartPolicy when restart rules are used",
        ),
        Some(policy) if !POLICIES.contains(&policy) => {
            checks.not_supported(&format!("{at}.restartPolicy"), policy, POLICIES);
        }
        Some(_) => {}
    }
    let at = format!("{at}.restartPolicyRules");
    if rules.len() > MOST_RULES {
        checks.too_many(&at, rules.len(), MOST_RULES);
    }
    for (i, rule) in rules.iter().enumerate() {
        let action = text(rule, "/action");
        if action != "Restart" {
            checks.not_supported(&format!("{at}[{i}].action"), action, &["Restart"]);
        }
        let Some(codes) = rule.get("exitCodes") else {
            checks.required(&format!("{at}[{i}].exitCodes"), "must be specified");
            continue;
        };
        let operator = text(codes, "/operator");
        if !["In", "NotIn"].contains(&operator) {
            let at = format!("{at}[{i}].exitCodes.operator");
            checks.not_supported(&at, operator, &["In", "NotIn"]);
        }
        let values = items(codes, "/values").len();
        if values > MOST_CODES {
            checks.too_many(&format!("{at}[{i}].exitCodes.values"), values, MOST_CODES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(container: Value) -> Vec<String> {
        let mut checks = Checks::default();
        validate(&mut checks, "c", &container);
        let told = checks.causes().into_iter();
        told.map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn policies_and_rules_of_containers() {
        assert_eq!(told(json!({})), [""; 0]);
        for policy in POLICIES {
            let rule =
                json!({"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [1]}});
            let container = json!({"restartPolicy": policy, "restartPolicyRules": [rule]});
            assert_eq!(told(container), [""; 0]);
        }
        let rules = json!([
            {"action": "RestartAllContainers", "exitCodes": {"operator": "Is"}},
            {"action": "Restart"},
        ]);
        assert_eq!(
            told(json!({"restartPolicyRules": rules})),
            [
                "c.restartPolicy: Required value: must specify restartPolicy when restart rules are used",
                r#"c.restartPolicyRules[0].action: Unsupported value: "RestartAllContainers": supported values: "Restart""#,
                r#"c.restartPolicyRules[0].exitCodes.operator: Unsupported value: "Is": supported values: "In", "NotIn""#,
                "c.restartPolicyRules[1].exitCodes: Required value: must be specified",
            ]
        );
        let many = vec![json!({"action": "Restart", "exitCodes": {"operator": "In"}}); 21];
        assert_eq!(
            told(json!({"restartPolicy": "Sometimes", "restartPolicyRules": many})),
            [
                r#"c.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure""#,
                "c.restartPolicyRules: Too many: 21: must have at most 20 items",
            ]
        );
    }
}
