/** What is used of the library. Its own declarations name files in a way that Node's resolution does not find. */
declare module "@huggingface/tokenizers" {
  export class Tokenizer {
    /** Takes what tokenizer.json and tokenizer_config.json hold. */
    constructor(tokenizer: object, config: object);
    encode(text: string): { ids: number[] };
    decode(tokens: number[]): string;
  }
}
