//! Lives of caches.
use crate::{
    compare::{at_most, ensure, records_conform, relative_error},
    data::{Binary, CacheCase, Step},
    input::{draws, exact},
    report::Outcome,
};
use kvarn_conformance::{attend::Layer, cache::Cache, error::Error, shape::Preset};
use std::{collections::HashMap, ops::Range};

/// A life under way.
struct Life<'a> {
    case: &'a CacheCase,
    binary: &'a Binary,
    preset: Preset,
    layers: Vec<Layer>,
    caches: HashMap<&'a str, Cache>,
}

pub fn check_cache(case: &CacheCase, binary: &Binary) -> Outcome {
    let preset = Preset::parse(&case.config.preset).map_err(|error| error.to_string())?;
    let mut main = Cache::new(preset, case.config.iterations, case.config.exact_window);
    let layers = case.config.layers();
    layers
        .iter()
        .cloned()
        .try_for_each(|layer| main.add_layer(layer))
        .map_err(|error| error.to_string())?;
    let mut life = Life {
        case,
        binary,
        preset,
        layers,
        caches: HashMap::from([("main", main)]),
    };
    for (index, step) in case.steps.iter().enumerate() {
        life.step(step).map_err(|why| format!("step {index}: {why}"))?;
    }
    Ok(())
}

impl<'a> Life<'a> {
    fn step(&mut self, step: &'a Step) -> Outcome {
        let said = |error: Error| error.to_string();
        match step {
            Step::Append {
                cache,
                layer,
                tokens,
                from,
                count,
                chunk,
            } => {
                for start in (*from..from + count).step_by(*chunk) {
                    let (k, v) = self.tokens(*layer, tokens, start..(start + chunk).min(from + count));
                    self.cache(cache).append(*layer, &k, &v).map_err(said)?;
                }
                Ok(())
            }
            Step::Attend {
                cache,
                layer,
                seed,
                count,
                output,
            } => {
                let Layer {
                    query_heads,
                    head_dim,
                    ..
                } = self.layers[*layer];
                let q = draws(count * query_heads * head_dim, *seed, 0.125);
                let found = self.cache(cache).attend(*layer, &q).map_err(said)?;
                at_most(
                    "output",
                    relative_error(&found, &self.binary.floats(output)),
                    5e-3,
                )
            }
            Step::Records {
                cache,
                layer,
                records,
            } => {
                let shape = self.layers[*layer].shape(self.preset).map_err(said)?;
                let binary = self.binary;
                let found = self.cache(cache).records(*layer).map_err(said)?;
                let tiles = found.len() / shape.tile_bytes();
                ensure(tiles == records.len(), || {
                    format!("{tiles} tiles instead of {}", records.len())
                })?;
                let mut pairs = found.chunks(shape.tile_bytes()).zip(records);
                pairs.try_for_each(|(found, stored)| records_conform(found, binary.bytes(stored), &shape))
            }
            Step::Length { cache, layer, length } => {
                let found = self.cache(cache).length(*layer).map_err(said)?;
                ensure(found == *length, || format!("{found} tokens instead of {length}"))
            }
            Step::Flush { cache } => self.cache(cache).flush().map_err(said),
            Step::Truncate { cache, length } => self.cache(cache).truncate(*length).map_err(said),
            Step::RefuseTruncate { cache, length } => self.refuse(cache, |cache| cache.truncate(*length)),
            Step::RefuseAppend {
                cache,
                layer,
                tokens,
                from,
                count,
            } => {
                let (k, mut v) = self.tokens(*layer, tokens, *from..from + count);
                *v.last_mut().expect("tokens") = f32::NAN;
                self.refuse(cache, |cache| cache.append(*layer, &k, &v))
            }
            Step::Fork { cache, name } => {
                let fork = self.cache(cache).clone();
                self.caches.insert(name, fork);
                Ok(())
            }
            Step::Save {
                cache,
                name,
                most_bytes,
            } => {
                let bytes = self.cache(cache).save();
                ensure(bytes.len() <= *most_bytes, || format!("{} bytes", bytes.len()))?;
                self.caches.insert(name, Cache::restore(&bytes).map_err(said)?);
                Ok(())
            }
            Step::Dispose { cache } => {
                self.caches.remove(cache.as_str());
                Ok(())
            }
        }
    }

    fn cache(&mut self, name: &str) -> &mut Cache {
        self.caches
            .get_mut(name)
            .expect("a cache that was made and not disposed of")
    }

    /// Tokens of a layer's width.
    fn tokens(&self, layer: usize, name: &str, range: Range<usize>) -> (Vec<f32>, Vec<f32>) {
        let width = self.layers[layer].kv_heads * self.layers[layer].head_dim;
        let (k, v) = exact(&self.case.tokens[name], width);
        let elements = range.start * width..range.end * width;
        (k[elements.clone()].to_vec(), v[elements].to_vec())
    }

    /// Nothing may change: the cache as bytes stays the same.
    fn refuse(&mut self, name: &str, call: impl FnOnce(&mut Cache) -> Result<(), Error>) -> Outcome {
        let cache = self.cache(name);
        let before = cache.save();
        ensure(call(cache).is_err(), || "not refused".into())?;
        ensure(cache.save() == before, || "refused, but changed".into())
    }
}
