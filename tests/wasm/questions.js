// Asked in a page of globalThis.storyEngine, for test_both_engines.py: every answer as JSON, floats as their bits.
async () => {
  const engine = globalThis.storyEngine;
  const plain = (value) => JSON.parse(JSON.stringify(value, (key, inner) =>
    key === "story" ? inner.ids : inner instanceof Float32Array ? [...new Uint32Array(inner.buffer)] : inner));
  const refused = async (question) => {
    try {
      await question();
    } catch (error) {
      return error.message;
    }
    return "";
  };
  const knobs = { temperature: 1, top_p: 0.9, top_k: 0, min_p: 0, repetition_penalty: 1 };
  const answers = { about: await engine.about(), excerpts: await engine.excerpts() };
  for (const text of ["Once upon a time", "", "\u2603 \u00e9 <s>"]) answers[`begin ${text}`] = await engine.begin(text);
  answers.ids = await engine.begin([1, 5, 300]);
  let { story } = answers["begin Once upon a time"];
  let random = { seed: "18446744073709551613" };
  const kinds = [{}, { temperature: 0 }, { top_p: 1, min_p: 0.1 }, { top_k: 5 }, { temperature: 3, repetition_penalty: 1.3 }];
  for (const [i, kind] of [...kinds, ...kinds].entries()) {
    const forced = i === 7 ? { forced: 7 } : {};
    const answer = await engine.next(story, { ...random, sampling: { ...knobs, ...kind }, ...forced });
    answers[`next ${i}`] = answer;
    [story, random] = [answer.story, { state: answer.after }];
  }
  for (const position of [0, 3, story.ids.length - 1]) answers[`attention ${position}`] = await engine.attention(story, position);
  const told = Array.from({ length: 4 }, () => []);
  const how = { seed: "1", sampling: knobs, length: 12 };
  await engine.crowd({ ids: [1, 5, 300] }, how, 4, 2, (index, ids) => told[index].push(...ids));
  answers.crowd = told;
  answers.refused = [
    await refused(() => engine.begin([1, 99999])),
    await refused(() => engine.next({ ids: [1] }, { seed: "18446744073709551616", sampling: knobs })),
    await refused(() => engine.next({ ids: [1] }, { seed: "1", sampling: { ...knobs, top_p: 2 } })),
    await refused(() => engine.next({ ids: [1] }, { state: "0", sampling: knobs })),
    await refused(() => engine.next({ ids: [1] }, { seed: "1", sampling: knobs, forced: 99999 })),
    await refused(() => engine.attention({ ids: [1, 5] }, 2)),
    await refused(() => engine.attention({ ids: [1, 5] }, -1)),
  ];
  return plain(answers);
}
