//! Runs every list of `conformance/data` on this crate, as `conformance/README.md` says.
mod attention;
mod caches;
mod compare;
mod data;
mod input;
mod kernels;
mod plain;
mod records;
mod report;

use std::process::ExitCode;

fn main() -> ExitCode {
    let (golden, golden_binary) = data::read::<data::Golden>("golden");
    let (derived, binary) = data::read::<data::Derived>("derived");
    let mut report = report::Report::default();

    report.list(
        "golden",
        &golden.cases,
        |case| &case.name,
        |case| records::check_encode(case, &golden_binary),
    );
    report.list(
        "encode",
        &derived.encode,
        |case| &case.name,
        |case| records::check_encode(case, &binary),
    );

    // Decoding is of all records that there are.
    let with_input: Vec<_> = golden
        .cases
        .iter()
        .map(|case| (case, &golden_binary))
        .chain(derived.encode.iter().map(|case| (case, &binary)))
        .collect();
    report.list(
        "decode",
        &with_input,
        |(case, _)| &case.name,
        |(case, binary)| records::check_decode_of(case, binary),
    );
    report.list(
        "decode, no input",
        &derived.decode,
        |case| &case.name,
        |case| records::check_decode(binary.bytes(&case.records), &case.shape()).map(|_| ()),
    );

    report.list(
        "rotate",
        &derived.rotate,
        |case| &case.name,
        |case| kernels::check_rotate(case, &binary),
    );
    report.list(
        "normalize",
        &derived.normalize,
        |case| &case.name,
        |case| kernels::check_normalize(case, &binary),
    );
    report.list(
        "pack",
        &derived.pack,
        |case| &case.name,
        |case| kernels::check_pack(case, &binary),
    );
    report.list(
        "attend",
        &derived.attend,
        |case| &case.name,
        |case| {
            let of_cases = with_input.iter().find(|(other, _)| other.name == case.records);
            let records = match of_cases {
                Some((other, binary)) => binary.bytes(&other.records),
                None => {
                    let other = derived.decode.iter().find(|other| other.name == case.records);
                    binary.bytes(&other.ok_or("no such records")?.records)
                }
            };
            attention::check_attend(case, records, &binary)
        },
    );
    report.list(
        "cache",
        &derived.cache,
        |case| &case.name,
        |case| caches::check_cache(case, &binary),
    );

    if report.print() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
