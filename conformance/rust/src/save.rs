//! A cache as bytes. The format is this implementation's own: little-endian, fields in the order written.
use crate::{
    attend::Layer,
    cache::{Cache, Held},
    error::Error,
    shape::Preset,
    tokens::Tokens,
};
use alloc::vec::Vec;

const MAGIC: [u8; 4] = *b"KVR1";

impl Cache {
    pub fn save(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([
            self.preset.key_bits as u8,
            self.preset.value_bits as u8,
            self.preset.group as u8,
        ]);
        for number in [self.iterations as usize, self.exact_window, self.layers.len()] {
            put(&mut bytes, number);
        }
        for held in &self.layers {
            write_layer(&mut bytes, held);
        }
        bytes
    }

    pub fn restore(bytes: &[u8]) -> Result<Cache, Error> {
        let mut reader = Reader(bytes);
        let [key_bits, value_bits, group] = {
            if reader.take(4)? != MAGIC {
                return Err(Error::Saved);
            }
            reader.array()?
        };
        let preset = Preset::new(key_bits, value_bits, group)?;
        let iterations = u32::try_from(reader.number()?).map_err(|_| Error::Saved)?;
        let mut cache = Cache::new(preset, iterations, reader.number()?);
        for layer in 0..reader.number()? {
            cache.add_layer(read_layer(&mut reader)?)?;
            reader.fill(&mut cache.layers[layer])?;
        }
        if reader.0.is_empty() {
            Ok(cache)
        } else {
            Err(Error::Saved)
        }
    }
}

fn put(bytes: &mut Vec<u8>, number: usize) {
    bytes.extend((number as u64).to_le_bytes());
}

fn write_layer(bytes: &mut Vec<u8>, held: &Held) {
    let layer = &held.layer;
    for number in [layer.query_heads, layer.kv_heads, layer.head_dim] {
        put(bytes, number);
    }
    // An option is its count of numbers, none or some, and those.
    for option in [
        layer.softmax_scale.as_slice(),
        layer.sliding_window.map(|window| window as f64).as_slice(),
        layer.soft_cap.as_slice(),
        layer.sink_logits.as_deref().unwrap_or_default(),
    ] {
        put(bytes, option.len());
        option.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    }
    for number in [held.sink.k.len(), held.records.len(), held.tail.k.len()] {
        put(bytes, number);
    }
    for halves in [&held.sink.k, &held.sink.v, &held.tail.k, &held.tail.v] {
        halves.iter().for_each(|half| bytes.extend(half.to_le_bytes()));
    }
    bytes.extend(&held.records);
}

fn read_layer(reader: &mut Reader) -> Result<Layer, Error> {
    let mut layer = Layer::new(reader.number()?, reader.number()?, reader.number()?);
    layer.softmax_scale = reader.floats()?.first().copied();
    layer.sliding_window = reader.floats()?.first().map(|window| *window as usize);
    layer.soft_cap = reader.floats()?.first().copied();
    let logits = reader.floats()?;
    layer.sink_logits = (!logits.is_empty()).then_some(logits);
    Ok(layer)
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Error::Saved)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.take(N)?.try_into().map_err(|_| Error::Saved)
    }

    fn number(&mut self) -> Result<usize, Error> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|_| Error::Saved)
    }

    fn floats(&mut self) -> Result<Vec<f64>, Error> {
        (0..self.number()?)
            .map(|_| Ok(f64::from_le_bytes(self.array()?)))
            .collect()
    }

    fn halves(&mut self, count: usize) -> Result<Vec<u16>, Error> {
        (0..count)
            .map(|_| Ok(u16::from_le_bytes(self.array()?)))
            .collect()
    }

    /// Reads what a layer holds, in lengths that fit its shape.
    fn fill(&mut self, held: &mut Held) -> Result<(), Error> {
        let (sink, records, tail) = (self.number()?, self.number()?, self.number()?);
        let (width, tile) = (held.shape.width(), held.shape.preset.group * held.shape.width());
        let whole = sink.is_multiple_of(width)
            && tail.is_multiple_of(width)
            && records.is_multiple_of(held.shape.tile_bytes());
        let sink_comes_first = sink == tile || (sink < tile && records == 0 && tail == 0);
        if !whole || !sink_comes_first {
            return Err(Error::Saved);
        }
        held.sink = Tokens {
            k: self.halves(sink)?,
            v: self.halves(sink)?,
        };
        held.tail = Tokens {
            k: self.halves(tail)?,
            v: self.halves(tail)?,
        };
        held.records = self.take(records)?.to_vec();
        Ok(())
    }
}
