//! A cache: per layer an exact sink, records, and an exact tail.
use crate::{
    attend::{Layer, attend},
    error::Error,
    record::encode_tile,
    shape::{Preset, Shape},
    tokens::Tokens,
};
use alloc::vec::Vec;

/// Its clone is a fork.
#[derive(Clone, Debug)]
pub struct Cache {
    pub(crate) preset: Preset,
    /// Of the normalization.
    pub(crate) iterations: u32,
    /// Newest tokens that stay exact beyond those of the last append.
    pub(crate) exact_window: usize,
    pub(crate) layers: Vec<Held>,
}

/// What one layer holds.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) layer: Layer,
    pub(crate) shape: Shape,
    /// The first tokens, up to a tile of them. Never encoded.
    pub(crate) sink: Tokens,
    /// Whole tiles.
    pub(crate) records: Vec<u8>,
    /// Not encoded yet.
    pub(crate) tail: Tokens,
}

impl Cache {
    pub fn new(preset: Preset, iterations: u32, exact_window: usize) -> Cache {
        Cache {
            preset,
            iterations,
            exact_window,
            layers: Vec::new(),
        }
    }

    /// Adds an empty layer behind the others.
    pub fn add_layer(&mut self, layer: Layer) -> Result<(), Error> {
        let shape = layer.shape(self.preset)?;
        let (sink, records, tail) = Default::default();
        self.layers.push(Held {
            layer,
            shape,
            sink,
            records,
            tail,
        });
        Ok(())
    }

    /// Tokens in a layer.
    pub fn length(&self, layer: usize) -> Result<usize, Error> {
        Ok(self.layers.get(layer).ok_or(Error::Shape)?.length())
    }

    /// The records of a layer's encoded tiles.
    pub fn records(&self, layer: usize) -> Result<&[u8], Error> {
        Ok(&self.layers.get(layer).ok_or(Error::Shape)?.records)
    }

    /// Encodes the tiles that are due, then adds tokens, `[tokens, kv_heads, head_dim]` each.
    pub fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) -> Result<(), Error> {
        let held = self.layers.get_mut(layer).ok_or(Error::Shape)?;
        // First what may be refused, so that nothing has changed then.
        let mut more = Tokens::from_input(k, v, &held.shape)?;
        held.encode_due(self.exact_window, self.iterations)?;
        let free = held.shape.preset.group - held.sink.count(&held.shape);
        held.sink.append(more.take_first(free, &held.shape));
        held.tail.append(more);
        Ok(())
    }

    /// Attention of a layer's newest tokens, `[queries, query_heads, head_dim]`.
    pub fn attend(&self, layer: usize, q: &[f32]) -> Result<Vec<f64>, Error> {
        let held = self.layers.get(layer).ok_or(Error::Shape)?;
        attend(&held.layer, self.preset, q, &held.sink, &held.records, &held.tail)
    }

    /// Encodes what the next append would, in all layers.
    pub fn flush(&mut self) -> Result<(), Error> {
        let (exact_window, iterations) = (self.exact_window, self.iterations);
        self.layers
            .iter_mut()
            .try_for_each(|held| held.encode_due(exact_window, iterations))
    }

    /// Shortens all layers, or none where one of them cannot be cut there.
    pub fn truncate(&mut self, length: usize) -> Result<(), Error> {
        if !self.layers.iter().all(|held| held.can_cut(length)) {
            return Err(Error::Cut);
        }
        self.layers.iter_mut().for_each(|held| held.cut(length));
        Ok(())
    }
}

impl Held {
    /// Tokens in records.
    fn encoded(&self) -> usize {
        self.records.len() / self.shape.tile_bytes() * self.shape.preset.group
    }

    fn length(&self) -> usize {
        self.sink.count(&self.shape) + self.encoded() + self.tail.count(&self.shape)
    }

    /// Encodes every tile that is not encoded yet and ends before the exact window.
    fn encode_due(&mut self, exact_window: usize, iterations: u32) -> Result<(), Error> {
        let group = self.shape.preset.group;
        let end = self.length().saturating_sub(exact_window);
        // The tail begins where the sink, one tile, and the records end.
        while group + self.encoded() + group <= end {
            // The tail keeps a tile whose encoding is refused.
            self.records.extend(encode_tile(
                &self.tail.first(group, &self.shape),
                &self.shape,
                iterations,
            )?);
            self.tail.take_first(group, &self.shape);
        }
        Ok(())
    }

    fn can_cut(&self, length: usize) -> bool {
        let group = self.shape.preset.group;
        let within_records = length > group && length < group + self.encoded();
        length <= self.length() && (!within_records || length.is_multiple_of(group))
    }

    fn cut(&mut self, length: usize) {
        let group = self.shape.preset.group;
        let behind_sink = length.saturating_sub(group);
        self.tail
            .truncate(behind_sink.saturating_sub(self.encoded()), &self.shape);
        self.records
            .truncate(behind_sink / group * self.shape.tile_bytes());
        self.sink.truncate(length, &self.shape);
    }
}
