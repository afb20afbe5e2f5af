// Asks a model for one random row at a constant rate, and writes a line for each answer (clients.py: Answer).
import http from "k6/http";

export const options = {
  discardResponseBodies: false,
  scenarios: {
    rows: {
      executor: "constant-arrival-rate",
      rate: Number(__ENV.RATE),
      timeUnit: "1s",
      duration: "2h",
      preAllocatedVUs: 200,
      maxVUs: 400,
    },
  },
};

const sent = { headers: { "content-type": "application/json" }, timeout: "30s" };

export default function () {
  // Numbers that FP32 holds exactly, so that both sides mean the same bytes.
  const row = [Number(__ENV.LEAST) + Math.random(), Math.random(), Math.random(), Math.random()].map(Math.fround);
  const body = { inputs: [{ name: "x", shape: [1, 4], datatype: "FP32", data: row }] };
  const sent_s = Date.now() / 1000;
  const answer = http.post(__ENV.URL, JSON.stringify(body), sent);
  const version = answer.status === 200 ? answer.json("model_version") : "-";
  console.log([sent_s, answer.status, answer.timings.duration, version, ...row].join(" "));
}
