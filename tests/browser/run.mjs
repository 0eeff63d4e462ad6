// Plays the arena in a real browser, against a real server with bots.
//
//     node run.mjs --web DIR [--programs DIR] [--artifacts DIR] [--short] [WAY…]
//
// Ways to the server: ws, wss and nginx (TLS and two servers behind Debian's nginx); all by default. Each is played
// through: join, move by key presses, see a bot move, stand still like a tab in the background, lose the connection
// and come back.

import assert from "node:assert/strict";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { Arena, launch } from "./arena.mjs";
import { Nginx, serverOfRoom } from "./nginx.mjs";
import { Proxy, freePort } from "./net.mjs";
import { Program, makeCertificate } from "./programs.mjs";

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    web: { type: "string", default: path.join(root, "target/web") },
    programs: { type: "string", default: path.join(root, "target/release/examples") },
    artifacts: { type: "string", default: path.join(root, "target/browser") },
    short: { type: "boolean", default: false },
  },
});

const WAYS = { ws: throughWs, wss: throughWss, nginx: throughNginx };
const ways = positionals.length > 0 ? positionals : Object.keys(WAYS);
for (const way of ways) {
  if (!(way in WAYS)) fail(`there is no way ${way}; there are ${Object.keys(WAYS).join(", ")}`);
}
if (!fs.existsSync(path.join(options.web, "index.html"))) {
  fail(`${options.web} has no page; \`cargo xtask web\` makes it`);
}
for (const program of ["serve", "bots"]) {
  if (!fs.existsSync(path.join(options.programs, program))) {
    fail(`${options.programs} has no ${program}; \`cargo build --release --examples\` makes it`);
  }
}

/** How long the page stands still, as in the background: longer than any timeout, of the server (15 s) or of ours. */
const STILL_MS = options.short ? 17_000 : 40_000;
/** How often the connection is cut. */
const CUTS = options.short ? 1 : 3;

fs.mkdirSync(options.artifacts, { recursive: true });
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), "arena-"));
/** What is to be stopped, last first. */
const running = [];
let failures = 0;
const browser = await launch();
try {
  for (const way of ways) {
    try {
      const result = await WAYS[way](way);
      console.log(JSON.stringify({ way, passed: true, ...result }));
    } catch (error) {
      failures += 1;
      console.log(JSON.stringify({ way, passed: false }));
      console.error(`${way}: ${error.stack}`);
    } finally {
      while (running.length > 0) await running.pop()();
    }
  }
} finally {
  await browser.close();
  fs.rmSync(scratch, { recursive: true, force: true });
}
process.exit(failures > 0 ? 1 : 0);

/** The page and the WebSocket from the server itself, without TLS. */
async function throughWs(way) {
  const server = await serve(way, []);
  await bots(way, server);
  return play(way, `http://127.0.0.1:${server.proxy.port}/?name=Ada`, [server.proxy]);
}

/** The same with TLS. */
async function throughWss(way) {
  const { cert, key } = makeCertificate(scratch);
  const server = await serve(way, ["--tls-cert", cert, "--tls-key", key]);
  await bots(way, server);
  return play(way, `https://127.0.0.1:${server.proxy.port}/?name=Ada`, [server.proxy]);
}

/** Two servers behind nginx, which does TLS and sends each player to the same one again. */
async function throughNginx(way) {
  const behindProxy = ["--trusted-proxy", "127.0.0.1"];
  const servers = [await serve(`${way}-1`, behindProxy), await serve(`${way}-2`, behindProxy)];
  for (const [index, server] of servers.entries()) await bots(`${way}-${index + 1}`, server);
  const proxies = servers.map((server) => server.proxy);
  const nginx = await Nginx.start({
    sample: path.join(root, "docs/nginx.conf"),
    folder: fs.mkdtempSync(path.join(scratch, "nginx-")),
    upstreams: proxies.map((proxy) => proxy.port),
    certificate: makeCertificate(scratch),
    log: logOf(way),
  });
  running.push(() => nginx.stop());

  // A player who comes back must find the session.
  const rooms = Array.from({ length: 24 }, (_, index) => `room-${index}`);
  const reached = new Map();
  for (const room of [...rooms, ...rooms]) {
    const server = await serverOfRoom(nginx.port, room, proxies);
    assert.equal(reached.get(room) ?? server, server, `nginx sends all of ${room} to one server`);
    reached.set(room, server);
  }
  assert.equal(new Set(reached.values()).size, 2, "nginx uses both servers");

  // All is on this machine, but the player has an address other than the proxies'.
  const player = "127.0.0.9";
  const wayIn = await Proxy.to(nginx.port, player);
  running.push(() => wayIn.close());
  const host = `127.0.0.1:${wayIn.port}`;
  const own = encodeURIComponent(`wss://${host}/?room=room-0`);
  const result = await play(way, `https://${host}/?name=Ada&server=${own}`, proxies);
  const told = [1, 2].map((index) => fs.readFileSync(logOf(`${way}-${index}`), "utf8")).join("");
  assert(told.includes(`Ada joins from ${player}:`), "the server knows where the player really is");
  return result;
}

/** A server with its proxy, which can be cut. */
async function serve(name, tls) {
  const [udp, ws] = [await freePort(), await freePort()];
  fs.rmSync(logOf(name), { force: true });
  const program = new Program(path.join(options.programs, "serve"), [
    "--udp", `127.0.0.1:${udp}`, "--ws", `127.0.0.1:${ws}`, "--web", options.web, ...tls,
  ], logOf(name), { RUST_LOG: "info,bevy_tandem::server=debug" });
  running.push(() => program.stop());
  await program.listening(ws);
  const proxy = await Proxy.to(ws);
  running.push(() => proxy.close());
  return { udp, proxy };
}

/** Players of the same match, over UDP. */
async function bots(name, server) {
  const program = new Program(path.join(options.programs, "bots"), [
    "--count", "2", "--udp", `127.0.0.1:${server.udp}`, "--seed", "3",
  ], logOf(name));
  running.push(() => program.stop());
}

/** What every way has to allow. */
async function play(way, url, proxies) {
  const started = Date.now();
  const arena = await Arena.join(browser, url);
  try {
    const joined = await arena.status();
    const result = { joined_ms: Date.now() - started };

    result.steered = await arena.steer();
    result.seen = await arena.seeOtherMove();
    await arena.screenshot(path.join(options.artifacts, `${way}.png`));
    result.frames_per_s = await arena.framesPerSecond();

    const frames = await arena.standStill(STILL_MS);
    const back = await arena.until("a tab that comes back goes on", (tandem) =>
      tandem.frames > frames + 10 && tandem.state === "Connected");
    assert.equal(back.session, joined.session, "a tab in the background keeps its session");
    assert.equal(back.own.entity, joined.own.entity, "and its ship");
    result.lost_in_background = back.lost;

    result.resumed_ms = [];
    for (let cut = 1; cut <= CUTS; cut += 1) {
      const before = await arena.status();
      const cut_at = Date.now();
      proxies.forEach((proxy) => proxy.cut());
      await arena.until("the player is told of the loss", (tandem) => tandem.state === "Reconnecting");
      proxies.forEach((proxy) => proxy.mend());
      const after = await arena.until("the player comes back", (tandem) =>
        tandem.state === "Connected" && tandem.resumed === before.resumed + 1);
      result.resumed_ms.push(Date.now() - cut_at);
      assert.equal(after.session, joined.session, "it is the same session");
      assert.equal(after.joined, 1, "it did not join anew");
      assert.equal(after.rejected + after.resynced, before.rejected + before.resynced, "nothing is missing");
      await arena.until("the ship is there", (tandem) => tandem.own?.entity === joined.own.entity);
    }
    await arena.steer();
    await arena.seeOtherMove();
    await arena.screenshot(path.join(options.artifacts, `${way}-resumed.png`));
    if (!options.short) {
      const eve = await Arena.join(browser, url.replace("Ada", "Eve"));
      const isEve = (ship) => ship.name === "Eve";
      await arena.until("another browser is seen", (tandem) => tandem.others.some(isEve));
      await eve.close();
      await arena.until("who closes the tab leaves", (tandem) => !tandem.others.some(isEve), 20_000);
    }
    assert.deepEqual(arena.complaints(), [], "the browser has nothing to complain of");
    return result;
  } catch (error) {
    await arena.screenshot(path.join(options.artifacts, `${way}-failed.png`)).catch(() => {});
    fs.writeFileSync(path.join(options.artifacts, `${way}-console.log`), arena.log.join("\n"));
    throw error;
  } finally {
    await arena.close();
  }
}

function logOf(name) {
  return path.join(options.artifacts, `${name}.log`);
}

function fail(what) {
  console.error(`error: ${what}`);
  process.exit(2);
}
