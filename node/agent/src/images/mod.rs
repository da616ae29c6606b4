//! Images for containers: found on this machine, never fetched yet.

use dhow_images::{Error, Image, Images};
use k8s_openapi::api::core::v1::{Container, ContainerImage};

/// Most images that the node's status lists, as upstream.
const LISTED_MOST: usize = 50;

/// Why a container has no image: reason and message of its waiting state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoImage(pub &'static str, pub String);

/// Finds a container's image. `missed` says that it was missing before: the words change from the
/// attempt to the pause between attempts.
///
/// # Errors
/// When it is not here.
pub fn find(images: &Images, container: &Container, missed: bool) -> Result<Image, NoImage> {
    let name = container.image.as_deref().unwrap_or("");
    images.get(name).map_err(|error| no_image(container, name, missed, &error))
}

fn no_image(container: &Container, name: &str, missed: bool, error: &Error) -> NoImage {
    let never = container.image_pull_policy.as_deref() == Some("Never");
    match error {
        Error::InvalidName { .. } => NoImage(
            "InvalidImageName",
            format!("Failed to apply default image tag {name:?}: {error}"),
        ),
        Error::NotFound(_) if never => NoImage(
            "ErrImageNeverPull",
            format!("Container image {name:?} is not present with pull policy of Never"),
        ),
        Error::NotFound(_) if missed => {
            NoImage("ImagePullBackOff", format!("Back-off pulling image {name:?}: {error}"))
        }
        Error::NotFound(_) => NoImage(
            "ErrImagePull",
            format!(
                "failed to pull image {name:?}: this version of dhow has no registry client: {error}"
            ),
        ),
        _ => NoImage("ImageInspectError", format!("Failed to inspect image {name:?}: {error}")),
    }
}

/// Whether a waiting reason is about an image, so that a new image may end it.
pub fn is_about_image(reason: &str) -> bool {
    matches!(
        reason,
        "ErrImagePull"
            | "ImagePullBackOff"
            | "ErrImageNeverPull"
            | "InvalidImageName"
            | "ImageInspectError"
    )
}

/// The machine's images for the node's status, largest first.
pub fn listed(images: &Images) -> Vec<ContainerImage> {
    let mut all = images.list().unwrap_or_default();
    all.sort_by_key(|i| std::cmp::Reverse(i.size));
    all.truncate(LISTED_MOST);
    all.into_iter()
        .filter(|i| !i.names.is_empty())
        .map(|i| ContainerImage { size_bytes: i64::try_from(i.size).ok(), names: Some(i.names) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_image_is_told_by_policy() {
        let reason = |policy: &str, missed: bool| {
            let container =
                Container { image_pull_policy: Some(policy.into()), ..Container::default() };
            let NoImage(reason, message) =
                no_image(&container, "x", missed, &Error::NotFound("x".into()));
            (reason, message)
        };
        assert_eq!(reason("Never", false).0, "ErrImageNeverPull");
        let (first, message) = reason("IfNotPresent", false);
        assert_eq!(first, "ErrImagePull");
        assert!(message.contains("dhow image load"), "{message}");
        assert_eq!(reason("Always", true).0, "ImagePullBackOff");
    }
}
