// Names and messages are the word of others. A character in them that cannot be seen, or that turns the text around it,
// is shown by its number: U+202E as \u202e.

const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0]/gu;

function number(character) {
  const code = character.codePointAt(0).toString(16);
  return code.length > 4 ? `\\u{${code}}` : `\\u${code.padStart(4, "0")}`;
}

export const visible = (text) => text.replace(HIDDEN, number);

// Reads JSON, and makes every text in it visible; one with no such character, escaped or not, is read as it is.
export function parse(json) {
  const isPlain = !json.includes("\\") && json.search(HIDDEN) < 0;
  return isPlain ? JSON.parse(json) : JSON.parse(json, (_, value) => (typeof value === "string" ? visible(value) : value));
}
