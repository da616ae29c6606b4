//! The stages of a Dockerfile, and which of them a target needs.

use crate::expand::Expander;
use crate::instruction::{self, Instruction, Kind};
use crate::{Error, Place, config, nearest};
use std::collections::{BTreeSet, HashMap};

/// One stage: `FROM` and what follows.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) place: Place,
    /// `FROM` on one line, variables replaced.
    pub(crate) text: String,
    pub(crate) base: Base,
    pub(crate) name: Option<String>,
    pub(crate) steps: Vec<Instruction>,
}

impl Stage {
    fn triggers(&self) -> Vec<String> {
        let left = self.steps.iter().filter_map(|step| match &step.kind {
            Kind::Onbuild(text) => Some(text.clone()),
            _ => None,
        });
        left.collect()
    }
}

/// Where files or a file system come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Base {
    Scratch,
    /// An earlier stage.
    Stage(usize),
    Image(String),
}

/// A whole file: its stages, and the values of the `ARG`s before the first `FROM`.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) stages: Vec<Stage>,
    pub(crate) globals: HashMap<String, String>,
    pub(crate) escape: char,
}

/// Values of `--build-arg`.
pub(crate) type Given = HashMap<String, String>;

/// Variables that describe the platform; a stage sees them after `ARG NAME`.
fn platform() -> HashMap<String, String> {
    let mut all = HashMap::new();
    for side in ["TARGET", "BUILD"] {
        let arch = config::architecture();
        all.insert(format!("{side}PLATFORM"), format!("linux/{arch}"));
        all.insert(format!("{side}OS"), "linux".to_owned());
        all.insert(format!("{side}ARCH"), arch.to_owned());
        all.insert(format!("{side}VARIANT"), String::new());
    }
    all
}

/// Divides instructions into stages.
pub(crate) fn plan(
    file: &str,
    instructions: Vec<Instruction>,
    escape: char,
    given: &Given,
) -> Result<Plan, Error> {
    let mut globals = platform();
    let mut stages: Vec<Stage> = Vec::new();
    for instruction in instructions {
        let Instruction { place, kind, text } = instruction;
        let get = |name: &str| globals.get(name).cloned();
        let expander = Expander { escape, get: &get };
        match (kind, stages.last_mut()) {
            (Kind::From { platform, image, name }, _) => {
                let word = |text: &str| expander.word(text).map_err(|e| place.error(e));
                let image = word(&image)?;
                if image.is_empty() {
                    return Err(place.error(
                        "the name of the image is empty after its variables were replaced",
                    ));
                }
                if let Some(platform) = platform {
                    let wanted = word(&platform)?;
                    let here = format!("linux/{}", config::architecture());
                    if wanted != here {
                        return Err(place.error(format!(
                            "building for {wanted:?} is not implemented; this machine is {here:?}"
                        )));
                    }
                }
                if let Some(name) = &name
                    && stages.iter().any(|s| s.name.as_ref() == Some(name))
                {
                    return Err(place.error(format!("there are two stages named {name:?}")));
                }
                let base = match earlier(&stages, &image) {
                    Some(at) => Base::Stage(at),
                    None if image == "scratch" => Base::Scratch,
                    None => Base::Image(image.clone()),
                };
                let text = match &name {
                    Some(name) => format!("FROM {image} AS {name}"),
                    None => format!("FROM {image}"),
                };
                stages.push(Stage { place, text, base, name, steps: Vec::new() });
            }
            (Kind::Arg(arguments), None) => {
                for (name, default) in arguments {
                    let value = match (given.get(&name), default) {
                        (Some(value), _) => Some(value.clone()),
                        (None, Some(default)) => {
                            let get = |name: &str| globals.get(name).cloned();
                            let expander = Expander { escape, get: &get };
                            Some(expander.word(&default).map_err(|e| place.error(e))?)
                        }
                        (None, None) => None,
                    };
                    if let Some(value) = value {
                        globals.insert(name, value);
                    }
                }
            }
            (kind, Some(stage)) => stage.steps.push(Instruction { place, kind, text }),
            (_, None) => {
                return Err(place.error("expected FROM first (only ARG may stand before it)"));
            }
        }
    }
    if stages.is_empty() {
        return Err(Error::Dockerfile {
            file: file.to_owned(),
            line: 1,
            message: "the file has no FROM; expected FROM IMAGE or FROM scratch".into(),
        });
    }
    Ok(Plan { stages, globals, escape })
}

fn earlier(stages: &[Stage], name: &str) -> Option<usize> {
    let name = name.to_lowercase();
    stages.iter().position(|s| s.name.as_ref() == Some(&name))
}

impl Plan {
    /// Puts what bases leave for those made from them (`ONBUILD`) before the steps of their stages.
    /// `of_image` tells what an image leaves.
    pub(crate) fn run_triggers(
        &mut self,
        of_image: impl Fn(&str) -> Vec<String>,
    ) -> Result<(), Error> {
        for at in 0..self.stages.len() {
            let texts = match &self.stages[at].base {
                Base::Scratch => continue,
                Base::Image(name) => of_image(name),
                Base::Stage(base) => self.stages[*base].triggers(),
            };
            let stage = &mut self.stages[at];
            stage.steps.splice(0..0, instruction::triggers(&texts, &stage.place)?);
        }
        Ok(())
    }

    /// The stage that `--target` names; the last one if none is named.
    pub(crate) fn target(&self, wanted: Option<&str>) -> Result<usize, Error> {
        let Some(wanted) = wanted else { return Ok(self.stages.len() - 1) };
        let number = wanted.parse().ok().filter(|at| *at < self.stages.len());
        earlier(&self.stages, wanted).or(number).ok_or_else(|| {
            let names: Vec<&str> = self.stages.iter().filter_map(|s| s.name.as_deref()).collect();
            let hint = match (nearest(wanted, names.iter().copied()), &names[..]) {
                (Some(close), _) => format!("did you mean {close:?}?"),
                (None, []) => format!("its stages have the numbers 0 to {}", self.stages.len() - 1),
                (None, names) => format!("its stages are {}", names.join(", ")),
            };
            Error::Options(format!("the Dockerfile has no stage {wanted:?}; {hint}"))
        })
    }

    /// Where `COPY --from=TEXT` in stage `at` takes its files from.
    pub(crate) fn from(&self, at: usize, place: &Place, text: &str) -> Result<Base, Error> {
        if text.contains('$') {
            return Err(place.error(format!(
                "--from={text} takes no variables; name a stage with FROM {text} AS NAME and copy from that"
            )));
        }
        if let Some(found) = earlier(&self.stages[..at], text) {
            return Ok(Base::Stage(found));
        }
        if earlier(&self.stages, text).is_some() {
            return Err(place.error(format!(
                "the stage {text:?} is not complete here; stages can copy only from those above them"
            )));
        }
        match text.parse::<usize>() {
            Ok(number) if number < at => Ok(Base::Stage(number)),
            Ok(number) => Err(place.error(format!("there is no stage {number} above this one"))),
            Err(_) if text == "scratch" => Ok(Base::Scratch),
            Err(_) => Ok(Base::Image(text.to_owned())),
        }
    }

    /// The stages that `target` needs, itself included, in order.
    pub(crate) fn needed(&self, target: usize) -> Result<Vec<usize>, Error> {
        let mut needed = BTreeSet::new();
        let mut open = vec![target];
        while let Some(at) = open.pop() {
            if !needed.insert(at) {
                continue;
            }
            let stage = &self.stages[at];
            if let Base::Stage(base) = stage.base {
                open.push(base);
            }
            for step in &stage.steps {
                if let Kind::Copy(transfer) = &step.kind
                    && let Some(from) = &transfer.from
                    && let Base::Stage(from) = self.from(at, &step.place, from)?
                {
                    open.push(from);
                }
            }
        }
        Ok(needed.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(text: &str, given: &[(&str, &str)]) -> Result<Plan, Error> {
        let file = crate::syntax::parse("Dockerfile", text)?;
        let escape = file.escape;
        let given = given.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        plan("Dockerfile", crate::instruction::understand(file)?, escape, &given)
    }

    #[test]
    fn only_needed_stages_are_built() {
        let text = "FROM scratch AS a\nFROM scratch AS unused\nFROM A AS b\nFROM scratch\nCOPY --from=b x y\n\
                    COPY --from=1 x y";
        let plan = planned(text, &[]).unwrap();
        assert_eq!(plan.needed(plan.target(Some("b")).unwrap()).unwrap(), [0, 2]);
        assert_eq!(plan.needed(plan.target(None).unwrap()).unwrap(), [0, 1, 2, 3]);
        let refused = plan.target(Some("unsed")).unwrap_err().to_string();
        assert!(refused.contains("did you mean \"unused\""), "{refused}");
    }

    #[test]
    fn arguments_before_from_are_for_from() {
        let text = "ARG V=1\nARG BASE=img:${V}\nFROM ${BASE}";
        assert_eq!(planned(text, &[]).unwrap().stages[0].base, Base::Image("img:1".into()));
        let plan = planned(text, &[("V", "2")]).unwrap();
        assert_eq!(plan.stages[0].base, Base::Image("img:2".into()));
        assert!(planned("FROM $NONE", &[]).unwrap_err().to_string().contains("is empty"));
    }

    #[test]
    fn the_order_of_stages_matters() {
        let text = "FROM scratch\nCOPY --from=later a b\nFROM scratch AS later";
        let refused = planned(text, &[]).unwrap().needed(0).unwrap_err().to_string();
        assert!(refused.starts_with("Dockerfile:2: COPY: the stage \"later\""), "{refused}");
        let refused = planned("RUN x\nFROM scratch", &[]).unwrap_err().to_string();
        assert!(refused.contains("Dockerfile:1: RUN: expected FROM first"), "{refused}");
    }
}
