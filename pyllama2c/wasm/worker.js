/* The Worker's end of page_engine.js: questions come as {id, ask, given}, answers go as {id, answer} or {id, error}. */

let engine = null;

const QUESTIONS = {
  open: async ({ module, ...files }) => {
    engine = new Engine(await Library.load(module), files);
  },
  about: () => engine.about(),
  begin: ({ from }) => engine.begin(from),
  next: ({ ids, how }) => engine.next(ids, how),
  attention: ({ ids, position }) => engine.attention(ids, position),
  crowd: ({ ids, how, size, place }, told) => engine.crowd(ids, how, size, place, told),
};

self.onmessage = async ({ data: { id, ask, given } }) => {
  try {
    self.postMessage({ id, answer: await QUESTIONS[ask](given, (told) => self.postMessage({ id, told })) });
  } catch (error) {
    self.postMessage({ id, error: error.message });
  }
};
