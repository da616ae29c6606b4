//! Steps whose inputs did not change are not done again.

use crate::harness::{Said, World};
use dhow_images::Image;

crate::tests![
    an_unchanged_build_does_nothing_and_gives_the_same_image,
    what_changed_is_done_again_with_all_that_follows,
    without_cache_all_is_done_again,
    a_cache_whose_layers_were_deleted_is_no_cache,
];

fn build(world: &World, no_cache: bool) -> (Image, Said) {
    let mut options = world.options();
    options.no_cache = no_cache;
    let (image, said) = world.build_with(&options);
    (image.unwrap(), said)
}

const FILE: &str =
    "FROM box\nENV A=1\nCOPY a /a\nRUN echo $A > /made\nCOPY b /b\nWORKDIR /w\nCMD x\n";

fn an_unchanged_build_does_nothing_and_gives_the_same_image(world: &World) {
    world.base();
    world.write("a", "a");
    world.write("b", "b");
    world.write("Dockerfile", FILE);
    let (first, said) = build(world, false);
    assert_eq!(said.ran().len(), 6, "{said:?}");
    // Times do not count.
    world.write("a", "a");
    let (second, said) = build(world, false);
    assert_eq!(said.ran(), Vec::<&str>::new());
    assert_eq!(first, second);
    assert_eq!(world.text(&second, "made"), "1\n");
}

fn what_changed_is_done_again_with_all_that_follows(world: &World) {
    world.base();
    world.write("a", "a");
    world.write("b", "b");
    world.write("Dockerfile", FILE);
    build(world, false);
    world.write("b", "c");
    let (image, said) = build(world, false);
    assert_eq!(said.ran()[0], "COPY b /b", "{said:?}");
    assert_eq!(world.text(&image, "b"), "c");
    world.write("Dockerfile", FILE.replace("A=1", "A=2"));
    let (image, said) = build(world, false);
    // The copy depends on files alone; the command sees the variable.
    assert!(said.steps.contains(&"COPY a /a (cached)".to_owned()), "{said:?}");
    assert!(said.ran().contains(&"RUN echo $A > /made"), "{said:?}");
    assert_eq!(world.text(&image, "made"), "2\n");
}

fn without_cache_all_is_done_again(world: &World) {
    world.base();
    world.write("a", "a");
    world.write("b", "b");
    world.write("Dockerfile", FILE);
    build(world, false);
    let (_, said) = build(world, true);
    assert_eq!(said.ran().len(), 6, "{said:?}");
    let (_, said) = build(world, false);
    assert_eq!(said.ran().len(), 0, "{said:?}");
}

fn a_cache_whose_layers_were_deleted_is_no_cache(world: &World) {
    world.write("a", "a");
    world.write("Dockerfile", "FROM scratch\nCOPY a /a\n");
    build(world, false);
    world.images.remove("test", &[]).unwrap();
    let (image, said) = build(world, false);
    assert_eq!(said.ran(), ["COPY a /a"]);
    assert_eq!(world.text(&image, "a"), "a");
}
