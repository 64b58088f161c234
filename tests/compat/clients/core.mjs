// Runs of @prefactor/core. Argument: the URL of the API. Prints one line of JSON: the id of the run.
// The package learns of no termination.
import { createConfig, createCore, SpanType, withSpan } from "@prefactor/core";

const apiUrl = process.argv[2];
let run = null;

// The package keeps the id of the run to itself: read it from the answer to its own request.
const send = globalThis.fetch;
globalThis.fetch = async (url, options) => {
  const response = await send(url, options);
  if (String(url).endsWith("/register")) run = (await response.clone().json()).details.id;
  return response;
};

const core = createCore(
  createConfig({
    httpConfig: { apiUrl, apiToken: "token-of-compat", agentId: "compat-npm-core", agentName: "Compat" },
  }),
);
const object = { type: "object" };
core.agentManager.registerSchema({
  external_identifier: "1",
  span_schemas: { agent: object, llm: object, tool: object },
});
core.agentManager.startInstance();

const step = (name, spanType, work) => withSpan(core.tracer, { name, spanType, inputs: { name } }, work);
await step("guide", SpanType.AGENT, async () => {
  await step("small-1", SpanType.LLM, async () => ({ answer: "K2" }));
  await step("convert", SpanType.TOOL, async () => {
    throw new TypeError("unknown unit");
  }).catch(() => {});
});
core.agentManager.finishInstance();
await core.shutdown();
console.log(JSON.stringify({ run }));
