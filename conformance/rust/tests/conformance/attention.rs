//! Attention over a sink, records and a tail.
use crate::{
    compare::{at_most, ensure, relative_error},
    data::{AttendCase, Binary},
    input::{draws, exact},
    report::Outcome,
};
use kvarn_conformance::{attend::attend, shape::Preset, tokens::Tokens};

pub fn check_attend(case: &AttendCase, records: &[u8], binary: &Binary) -> Outcome {
    let preset = Preset::parse(&case.preset).map_err(|error| error.to_string())?;
    let layer = case.layer.layer();
    let shape = layer.shape(preset).map_err(|error| error.to_string())?;
    let tokens = |source| {
        let (k, v) = exact(source, shape.width());
        Tokens::from_input(&k, &v, &shape).map_err(|error| error.to_string())
    };
    let (sink, tail) = (tokens(&case.sink)?, tokens(&case.tail)?);
    let count = case.queries.tokens * layer.query_heads * layer.head_dim;
    let q = draws(count, case.queries.seed, case.queries.scale);
    let run = || attend(&layer, preset, &q, &sink, records, &tail).map_err(|error| error.to_string());

    let found = run()?;
    at_most(
        "output",
        relative_error(&found, &binary.floats(&case.output)),
        1e-5,
    )?;
    ensure(run()? == found, || "not repeatable".into())
}
