// An agent of LangChain.js with @prefactor/langchain's middleware. Argument: the URL of the API.
// Prints one line of JSON: the id of the run.
import { init, shutdown, SpanType, withSpan } from "@prefactor/langchain";
import { AIMessage, createAgent, fakeModel, tool } from "langchain";
import { z } from "zod";

const apiUrl = process.argv[2];
let run = null;

// The package keeps the id of the run to itself: read it from the answer to its own request.
const send = globalThis.fetch;
globalThis.fetch = async (url, options) => {
  const response = await send(url, options);
  if (String(url).endsWith("/register")) run = (await response.clone().json()).details.id;
  return response;
};

const middleware = init({
  transportType: "http",
  httpConfig: { apiUrl, apiToken: "token-of-compat", agentId: "compat-npm-langchain", agentName: "Compat" },
});
const height = tool(async ({ mountain }) => (mountain === "K2" ? "8611" : fail(mountain)), {
  name: "height",
  description: "The height of a mountain in metres.",
  schema: z.object({ mountain: z.string() }),
});

function fail(mountain) {
  throw new Error(`unknown mountain ${mountain}`);
}

function asks(mountain) {
  return { name: "height", args: { mountain }, id: `call-${mountain}`, type: "tool_call" };
}

// The middleware records no span for the agent itself.
async function ask(model) {
  const agent = createAgent({ model, tools: [height], middleware: [middleware] });
  const messages = [{ role: "user", content: "How high is K2?" }];
  const options = { name: "guide", spanType: SpanType.AGENT, inputs: { messages } };
  await withSpan(options, () => agent.invoke({ messages }));
}

await ask(fakeModel().respondWithTools([asks("K2")]).respond(new AIMessage("8611 m")));
await ask(fakeModel().respondWithTools([asks("Olymp")])).catch(() => {});
await shutdown();
console.log(JSON.stringify({ run }));
