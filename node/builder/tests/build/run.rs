//! Commands of RUN.

use crate::harness::World;
use std::path::Path;

crate::tests![commands_change_the_image,];

fn commands_change_the_image(world: &World) {
    world.base();
    let image = world.build("FROM box\nRUN echo hello > /made\n");
    assert_eq!(world.text(&image, "made"), "hello\n");
}

pub fn build_that_is_killed(_dir: &Path) {}
