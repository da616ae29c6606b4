//! How long a start and end of a static program takes: `containers bench`.

use crate::harness::{exit_of, sandbox, tear_down, world};
use std::rc::Rc;
use std::time::{Duration, Instant};

const ROUNDS: usize = 40;

pub fn run() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async {
        let world = Rc::new(world("bench").await);
        world.runtime.create_sandbox(sandbox("pod")).await.unwrap();
        for (name, pause) in
            [("burst", Duration::ZERO), ("200 ms apart", Duration::from_millis(200))]
        {
            for (kind, pod) in [("own namespaces", None), ("in a sandbox", Some("pod".to_owned()))]
            {
                let (mut starts, mut totals, mut removals) = (vec![], vec![], vec![]);
                let mut exits = world.runtime.exits();
                for round in 0..ROUNDS {
                    tokio::time::sleep(pause).await;
                    let id = format!("c{round}");
                    let mut spec = world.program(&id, &["true"]);
                    spec.sandbox = pod.clone();
                    let begin = Instant::now();
                    world.runtime.start(spec).await.unwrap();
                    starts.push(begin.elapsed());
                    assert_eq!(exit_of(&mut exits, &id).await.code, 0);
                    totals.push(begin.elapsed());
                    let begin = Instant::now();
                    world.runtime.remove(&id).await.unwrap();
                    removals.push(begin.elapsed());
                }
                println!(
                    "{name}, {kind}: start {}, start and end {}, removal {}",
                    summary(starts),
                    summary(totals),
                    summary(removals)
                );
            }
        }
        let left = tear_down(world).await;
        assert!(left.is_empty(), "{left:?}");
    }));
}

fn summary(mut times: Vec<Duration>) -> String {
    times.sort();
    let ms = |at: usize| times[at].as_secs_f64() * 1000.0;
    format!("{:.1} ms (p90 {:.1})", ms(times.len() / 2), ms(times.len() * 9 / 10))
}
