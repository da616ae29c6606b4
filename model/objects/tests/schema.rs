//! The schema's generic functions against what the real Go library made of the same objects.
//!
//! `data/schema_cases.jsonl` holds the objects, `data/schema_golden.txt` Go's answers
//! (`cargo xtask gen-kinds --goldens` writes them).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dhow_objects::schema::{Type, protobuf, schema, shape, strict};
use serde_json::Value;

fn cases() -> impl Iterator<Item = (&'static str, &'static str)> {
    let cases = include_str!("data/schema_cases.jsonl").lines();
    let answers = include_str!("data/schema_golden.txt").lines();
    assert_eq!(cases.clone().count(), answers.clone().count());
    cases.zip(answers)
}

fn type_of(object: &Value) -> &'static Type {
    let text = |key: &str| object[key].as_str().expect("cases name their kind");
    schema().kind_of(text("apiVersion"), text("kind")).expect("cases are of known kinds")
}

/// The good cases: the object as written, Go's protobuf, Go's JSON.
fn good() -> impl Iterator<Item = (Value, Vec<u8>, Value)> {
    cases().filter_map(|(case, answer)| {
        let (protobuf, json) = answer.strip_prefix("OK ")?.split_once(' ')?;
        let parsed = |text| serde_json::from_str(text).expect("JSON");
        Some((parsed(case), STANDARD.decode(protobuf).expect("base64"), parsed(json)))
    })
}

#[test]
fn refusals_and_warnings_read_like_those_of_go() {
    let mut bad = 0;
    for (case, answer) in cases().filter(|(_, answer)| !answer.starts_with("OK ")) {
        bad += 1;
        let object: Value = serde_json::from_str(case)
            .unwrap_or_else(|_| strict::parse_json(case.as_bytes()).expect("JSON").0);
        let read = strict::read(case.as_bytes(), type_of(&object)).expect("JSON");
        match answer.strip_prefix("ERR ") {
            Some(message) => assert_eq!(read.wrong.first().map(String::as_str), Some(message)),
            None => {
                assert_eq!(read.strict_error().as_deref(), answer.strip_prefix("STRICT "));
                assert!(read.wrong.is_empty());
            }
        }
    }
    assert!(bad > 30, "{bad}");
}

#[test]
fn good_objects_have_nothing_to_complain_of() {
    for (object, _, json) in good() {
        for object in [object, json] {
            let ty = type_of(&object);
            let read = strict::read(object.to_string().as_bytes(), ty).expect("JSON");
            assert_eq!((read.warnings.len(), read.wrong.len()), (0, 0), "{object}");
            let mut pruned = object.clone();
            strict::prune(&mut pruned, ty);
            assert_eq!(pruned, object);
        }
    }
}

#[test]
fn normalised_objects_look_like_those_of_go() {
    for (mut object, _, json) in good() {
        let ty = type_of(&object);
        shape::normalise(&mut object, ty);
        assert_eq!(object, json);
        shape::normalise(&mut object, ty);
        assert_eq!(object, json, "a normal form stays");
    }
}

#[test]
fn protobuf_is_byte_for_byte_that_of_go() {
    for (object, bytes, json) in good() {
        let ty = type_of(&object);
        assert_eq!(protobuf::encode(&object, ty).expect("fits"), bytes, "{object}");
        assert_eq!(protobuf::encode(&json, ty).expect("fits"), bytes, "{object}");
    }
}

#[test]
fn protobuf_of_go_reads_as_its_json() {
    for (_, bytes, json) in good() {
        let (api_version, kind, object) = protobuf::decode(&bytes).expect("reads");
        assert_eq!(
            (json["apiVersion"].as_str(), json["kind"].as_str()),
            (Some(api_version.as_str()), Some(kind.as_str()))
        );
        assert_eq!(object, json);
    }
}

/// Bodies of requests that kubectl 1.37.1 sent (`create deployment`, `auth whoami`...), recorded.
#[test]
fn bodies_of_kubectl_read_and_write_back() {
    let mut bodies = 0;
    for line in include_str!("data/kubectl_bodies.txt").lines() {
        let (bytes, json) = line.split_once(' ').expect("base64 and JSON");
        let bytes = STANDARD.decode(bytes).expect("base64");
        let (_, _, object) = protobuf::decode(&bytes).expect("reads");
        assert_eq!(object, serde_json::from_str::<Value>(json).expect("JSON"));
        assert_eq!(protobuf::encode(&object, type_of(&object)).expect("fits"), bytes);
        bodies += 1;
    }
    assert_eq!(bodies, 11);
}

#[test]
fn cut_and_foreign_bytes_are_refused_and_never_panic() {
    use protobuf::DecodeError;
    assert_eq!(protobuf::decode(b"{}"), Err(DecodeError::Magic));
    assert_eq!(protobuf::decode(b"k8s\0"), Err(DecodeError::NoKind));
    for (_, bytes, _) in good() {
        for length in 0..bytes.len() {
            let _ = protobuf::decode(&bytes[..length]);
        }
        for at in 4..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 0x81;
            let _ = protobuf::decode(&bent);
        }
    }
}

/// A small generator of values that fit a type, from a seed.
struct Maker(u64);

impl Maker {
    fn next(&mut self, below: u64) -> u64 {
        // xorshift64*: quality does not matter here, repeatability does.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }

    fn object(&mut self, ty: &'static Type, depth: u32) -> Value {
        let mut map = serde_json::Map::new();
        for field in ty.fields() {
            if field.number != 0 && (depth < 8 || field.ty.message().is_none()) && self.next(3) > 0
            {
                map.insert(field.json.to_owned(), self.value(&field.ty, depth));
            }
        }
        Value::Object(map)
    }

    fn value(&mut self, ty: &'static dhow_objects::schema::FieldType, depth: u32) -> Value {
        use dhow_objects::schema::FieldType as T;
        use serde_json::json;
        match ty {
            T::Bool => json!(self.next(2) == 1),
            T::Int32 => json!(self.next(1 << 32) as u32 as i32),
            T::Int64 => json!(self.next(1 << 31) as i64 - (1 << 20)),
            T::Float64 => json!(self.next(1000) as f64 / 8.0),
            T::String => json!(["", "a", "naïve ✓", "\"\\\n"][self.next(4) as usize]),
            T::Bytes => json!(["", "AA==", "aGk=", "aGVsbG8="][self.next(4) as usize]),
            T::IntOrString if self.next(2) == 1 => json!("25%"),
            T::IntOrString => json!(self.next(70_000)),
            T::Quantity => json!(["0", "100m", "1Gi", "2500", "1e3"][self.next(5) as usize]),
            T::Time => {
                json!(["2020-02-29T12:00:00Z", "1969-07-20T20:17:40Z"][self.next(2) as usize])
            }
            T::MicroTime => json!("1969-07-20T20:17:40.000001Z"),
            T::Duration => json!(["0s", "1h30m0s", "-1.5s"][self.next(3) as usize]),
            T::Raw | T::FieldsV1 => json!({"any": [1, 2.5, "x", null]}),
            T::Message(ty) => self.object(ty, depth + 1),
            T::List(item) => {
                // Protobuf cannot tell an empty list from none; Go shows `null` for both then.
                (0..=self.next(2)).map(|_| self.value(item, depth)).collect::<Vec<_>>().into()
            }
            T::Map(item) => Value::Object(
                (0..=self.next(2)).map(|n| (format!("k{n}"), self.value(item, depth))).collect(),
            ),
        }
    }
}

#[test]
fn every_kind_survives_the_way_through_protobuf() {
    let mut kinds = 0;
    for (gvk, ty) in schema().kinds() {
        if ty.name.starts_with("io.k8s.apiextensions-apiserver.")
            || ["Table", "WatchEvent"].contains(&gvk.kind)
        {
            continue; // These have no protobuf, or none in an envelope.
        }
        kinds += 1;
        for seed in 1..=5 {
            let mut object = Maker(seed * 7919).object(ty, 0);
            object["apiVersion"] = gvk.api_version().into();
            object["kind"] = gvk.kind.into();
            let report = strict::check(&object, ty);
            assert_eq!(report, strict::Report::default(), "{}", ty.name);
            let bytes = protobuf::encode(&object, ty).expect("fits");
            shape::normalise(&mut object, ty);
            let (_, _, back) = protobuf::decode(&bytes).expect("reads");
            assert_eq!(back, object, "{} seed {seed}", ty.name);
        }
    }
    assert!(kinds > 600, "{kinds}");
}
