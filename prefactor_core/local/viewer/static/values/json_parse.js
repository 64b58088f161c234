/**
 * A parser of JSON for display. Numbers keep their digits, which JSON.parse rounds beyond 2^53;
 * repeated keys stay; every list and object knows its place in the text.
 */

const JSON_MAX_DEPTH = 1500;

/** A number as it is written. */
export class JsonNumber {
  constructor(text) {
    this.text = text;
  }
}

/** A list, with its place in the text. */
export class JsonList {
  constructor(start) {
    this.items = [];
    this.start = start;
    this.end = start;
  }
}

/** An object: its entries `[key, value]` in order, and its place in the text. */
export class JsonObject {
  constructor(start) {
    this.entries = [];
    this.start = start;
    this.end = start;
  }

  /** Return the value of `key`, the last if there are several; undefined if there is none. */
  get(key) {
    return this.entries.findLast(([name]) => name === key)?.[1];
  }
}

/**
 * Return the value of a JSON text: null, a boolean, a string, a {@link JsonNumber},
 * {@link JsonList} or {@link JsonObject}; or undefined if the text is no JSON.
 */
export function parseJson(text) {
  try {
    const parser = new JsonParser(text);
    const value = parser.value(0);
    parser.space();
    return parser.at === text.length ? value : undefined;
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}

/**
 * Return the list or object that a string holds as JSON, else undefined. Strings that hold a bare
 * word or number are just strings.
 */
export function parseHeldJson(text) {
  return /^\s*[[{]/.test(text) && /[\]}]\s*$/.test(text) ? parseJson(text) : undefined;
}

/** Return whether `value` is marked as sensitive: `{"$sensitive": kind, labels, value}`. */
export function isSensitive(value) {
  return (
    value instanceof JsonObject &&
    value.get("$sensitive") !== undefined &&
    value.get("value") !== undefined
  );
}

/** Return the labels of a sensitive value: "contact_information". */
export function sensitiveLabels(value) {
  const labels = value.get("labels");
  const texts = labels instanceof JsonList ? labels.items.filter((l) => typeof l === "string") : [];
  return texts.join(", ") || "sensitive";
}

/** Return the text of a string, number, boolean or null, as a reader wants it. */
export function scalarText(value) {
  return value instanceof JsonNumber ? value.text : String(value);
}

/** Return JSON text with two spaces for each level, and labels for sensitive values. */
export function prettyJson(value, indent = "") {
  if (isSensitive(value)) return JSON.stringify(`[${sensitiveLabels(value)}]`);
  const inner = `${indent}  `;
  if (value instanceof JsonList) {
    const items = value.items.map((item) => inner + prettyJson(item, inner));
    return items.length === 0 ? "[]" : `[\n${items.join(",\n")}\n${indent}]`;
  }
  if (value instanceof JsonObject) {
    const entries = value.entries.map(
      ([key, item]) => `${inner}${JSON.stringify(key)}: ${prettyJson(item, inner)}`,
    );
    return entries.length === 0 ? "{}" : `{\n${entries.join(",\n")}\n${indent}}`;
  }
  return typeof value === "string" ? JSON.stringify(value) : scalarText(value);
}

const JSON_WORD = /-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|-?Infinity|NaN|true|false|null/y;
const JSON_WORDS = { true: true, false: false, null: null };

class JsonParser {
  constructor(text) {
    this.text = text;
    this.at = 0;
  }

  value(depth) {
    if (depth > JSON_MAX_DEPTH) throw new SyntaxError("too deep");
    this.space();
    switch (this.text[this.at]) {
      case "{":
        return this.object(depth);
      case "[":
        return this.list(depth);
      case '"':
        return this.string();
      default:
        return this.word();
    }
  }

  object(depth) {
    const object = new JsonObject(this.at++);
    for (let first = true; !this.takes("}"); first = false) {
      if (!first) this.expect(",");
      this.space();
      const key = this.string();
      this.expect(":");
      object.entries.push([key, this.value(depth + 1)]);
    }
    object.end = this.at;
    return object;
  }

  list(depth) {
    const list = new JsonList(this.at++);
    for (let first = true; !this.takes("]"); first = false) {
      if (!first) this.expect(",");
      list.items.push(this.value(depth + 1));
    }
    list.end = this.at;
    return list;
  }

  string() {
    if (this.text[this.at] !== '"') throw new SyntaxError(`no string at ${this.at}`);
    const start = this.at;
    let end = start;
    do {
      end = this.text.indexOf('"', end + 1);
      if (end < 0) throw new SyntaxError(`no end of the string at ${start}`);
    } while (this.isEscaped(end));
    this.at = end + 1;
    const token = this.text.slice(start, this.at);
    return token.includes("\\") ? JSON.parse(token) : token.slice(1, -1);
  }

  /** Return whether the quote at `end` follows an odd number of backslashes. */
  isEscaped(end) {
    let first = end;
    while (this.text[first - 1] === "\\") first -= 1;
    return (end - first) % 2 === 1;
  }

  word() {
    JSON_WORD.lastIndex = this.at;
    const token = JSON_WORD.exec(this.text)?.[0];
    if (token === undefined) throw new SyntaxError(`nothing known at ${this.at}`);
    this.at += token.length;
    return token in JSON_WORDS ? JSON_WORDS[token] : new JsonNumber(token);
  }

  space() {
    let code = this.text.charCodeAt(this.at);
    while (code === 32 || code === 10 || code === 13 || code === 9) {
      this.at += 1;
      code = this.text.charCodeAt(this.at);
    }
  }

  takes(character) {
    this.space();
    if (this.text[this.at] !== character) return false;
    this.at += 1;
    return true;
  }

  expect(character) {
    if (!this.takes(character)) throw new SyntaxError(`no ${character} at ${this.at}`);
  }
}
