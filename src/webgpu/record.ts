import type { RecordLayout } from "../format.js";
import type { Constants } from "./shader.js";

/** What shaders that read records want to know of them; offsets and sizes in words. */
export function recordConstants(layout: RecordLayout): Constants {
  return {
    D: layout.headDim,
    GROUP: layout.group,
    KEY_BITS: layout.keyBits,
    VALUE_BITS: layout.valueBits,
    K_SCALE: layout.kScale / 4,
    K_ZERO: layout.kZero / 4,
    K_TOKEN: layout.kToken / 4,
    V_CODES: layout.vCodes / 4,
    V_SCALE: layout.vScale / 4,
    V_TOKEN: layout.vToken / 4,
    V_ZERO: layout.vZero / 4,
    RECORD: layout.bytes / 4,
  };
}

/** How attention takes codes of records apart: eight tokens of a channel of K, and CHANNELS channels of a token of V. */
export function codeConstants({ headDim, group, keyBits, valueBits }: RecordLayout): Constants {
  const keyCodes = keyBits > 4 ? 4 : 8;
  const channels = valueBits === 2 ? 16 : 8;
  const valueCodes = valueBits > 4 ? 4 : channels;
  return {
    KEY_CODES: keyCodes,
    KEY_WORDS: 8 / keyCodes,
    KEY_ROW: (group / 32) * keyBits,
    CHANNELS: channels,
    VALUE_CODES: valueCodes,
    VALUE_WORDS: channels / valueCodes,
    COLUMNS: headDim / channels,
  };
}
