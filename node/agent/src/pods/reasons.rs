//! Why a pod's steps fail or wait, as data. Pure: what was seen in, reasons out.

use super::apply::{CONFIG_ERROR, StartFailure};
use super::observe::Instance;
use crate::env::Trouble;
use crate::images;
use crate::probes::Kind;
use dhow_reason::{Code, Reason};
use k8s_openapi::api::core::v1::{Container, Pod};

fn name_of(pod: &Pod) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", part(&pod.metadata.namespace), part(&pod.metadata.name))
}

fn pod(code: Code, pod: &Pod) -> Reason {
    Reason::new(code, format!("pod {}", name_of(pod)))
}

fn container(code: Code, of: &Pod, name: &str) -> Reason {
    Reason::new(code, format!("container {}/{name}", name_of(of)))
}

/// Something about a whole pod.
pub fn of_pod(code: Code, of: &Pod, said: &str) -> Reason {
    pod(code, of).with("said", said)
}

/// Something about a container.
pub fn of_container(code: Code, of: &Pod, name: &str, said: &str) -> Reason {
    container(code, of, name).with("said", said)
}

/// A volume that cannot be made.
pub fn volumes(of: &Pod, trouble: &Trouble) -> Reason {
    let cause = match trouble {
        Trouble::Config(_) => return of_pod(Code::VolumeFailed, of, &trouble.to_string()),
        Trouble::Missing(_) => Code::ConfigMissing,
        Trouble::Unreachable(_) => Code::ControlPlaneUnreachable,
    };
    pod(Code::VolumeFailed, of).because(of_pod(cause, of, &trouble.to_string()))
}

/// A container that was not started.
pub fn start(of: &Pod, what: &Container, failure: &StartFailure) -> Reason {
    let reason = |code| container(code, of, &what.name);
    match failure {
        StartFailure::Waiting(word, said) if images::is_about_image(word) => {
            let code = match *word {
                "InvalidImageName" => Code::ImageNameInvalid,
                _ => Code::ImageMissing,
            };
            let policy = what.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
            let image = what.image.as_deref().unwrap_or_default();
            reason(code).with("image", image).with("policy", policy).with("said", said)
        }
        StartFailure::Waiting(word, said) if *word == CONFIG_ERROR => {
            reason(Code::ConfigInvalid).with("said", said)
        }
        StartFailure::Waiting(_, said) => reason(Code::ControlPlaneUnreachable).with("said", said),
        StartFailure::Missing(said) => reason(Code::ConfigMissing).with("said", said),
        StartFailure::CannotStart(_, said) => reason(Code::CannotStart).with("said", said),
    }
}

/// A container that waits before it is started again, because of how its last run ended.
pub fn crash_loop(of: &Pod, name: &str, last: &Instance) -> Reason {
    let waits = container(Code::CrashLoop, of, name)
        .with("backoff", format!("{}s", last.backoff.as_secs()))
        .with("restarts", last.attempt);
    let Some(ended) = &last.ended else { return waits };
    let code = match ended.reason.as_str() {
        "OOMKilled" => Code::OomKilled,
        "StartError" => Code::CannotStart,
        _ => Code::Exited,
    };
    waits.because(container(code, of, name).with("code", ended.code).with("run", last.attempt))
}

/// A probe that failed.
pub fn probe(of: &Pod, name: &str, kind: Kind, said: &str) -> Reason {
    let code = match kind {
        Kind::Readiness => Code::NotReady,
        Kind::Liveness | Kind::Startup => Code::ProbeFailed,
    };
    container(code, of, name).with("probe", kind.word()).with("said", said.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shop() -> Pod {
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "cart"}})).unwrap()
    }

    fn web() -> Container {
        Container { name: "web".into(), image: Some("web:v9".into()), ..Container::default() }
    }

    #[test]
    fn a_start_that_failed_has_a_code_with_evidence() {
        let code = |failure: StartFailure| start(&shop(), &web(), &failure).code;
        let waiting = |word| StartFailure::Waiting(word, "why".into());
        assert_eq!(code(waiting("ErrImagePull")), Code::ImageMissing);
        assert_eq!(code(waiting("ImagePullBackOff")), Code::ImageMissing);
        assert_eq!(code(waiting("InvalidImageName")), Code::ImageNameInvalid);
        assert_eq!(code(waiting(CONFIG_ERROR)), Code::ConfigInvalid);
        assert_eq!(code(waiting("CreateContainerError")), Code::ControlPlaneUnreachable);
        assert_eq!(code(StartFailure::Missing("why".into())), Code::ConfigMissing);
        let cannot = StartFailure::CannotStart("id".into(), "no such file".into());
        assert_eq!(code(cannot), Code::CannotStart);
        let missing = start(&shop(), &web(), &waiting("ErrImageNeverPull"));
        assert_eq!(missing.object, "container shop/cart/web");
        assert_eq!(missing.evidence["image"], "web:v9");
    }

    #[test]
    fn what_stands_behind_a_wait_is_its_cause() {
        let trouble = Trouble::Missing("configmap \"x\" not found".into());
        let reason = volumes(&shop(), &trouble);
        assert_eq!((reason.code, reason.causes[0].code), (Code::VolumeFailed, Code::ConfigMissing));
        assert_eq!(
            reason.to_string(),
            "VolumeFailed: pod shop/cart; because ConfigMissing: pod shop/cart: said configmap \"x\" not found"
        );
        assert_eq!(probe(&shop(), "web", Kind::Readiness, "x").code, Code::NotReady);
        assert_eq!(probe(&shop(), "web", Kind::Liveness, "x").code, Code::ProbeFailed);
    }
}
