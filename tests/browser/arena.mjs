// The arena in a browser: opens it, and looks at and does what a player does.

import { chromium } from "playwright-core";

/** Everything here may take this long: headless browsers draw without a graphics card, on whatever machine there is. */
export const PATIENCE_MS = 90_000;

const FLAGS = [
  "--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic",
  "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
  // The server's certificate is its own.
  "--ignore-certificate-errors",
];

/** Starts the browser that `CHROMIUM` names, or Debian's. */
export function launch() {
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });
}

/** A page that plays. */
export class Arena {
  /** Opens the page of the game, and waits until it is in. */
  static async join(browser, url) {
    const context = await browser.newContext({ viewport: { width: 640, height: 360 }, ignoreHTTPSErrors: true });
    const page = await context.newPage();
    const arena = new Arena(context, page);
    await page.addInitScript(holdFrames);
    await page.goto(url);
    await arena.until("the player has joined", (tandem) => tandem.state === "Connected" && tandem.own !== null);
    return arena;
  }

  constructor(context, page) {
    this.context = context;
    this.page = page;
    /** What the browser's console says. */
    this.log = [];
    page.on("console", (message) => this.log.push(`${message.type()}: ${message.text()}`));
    page.on("pageerror", (error) => this.log.push(`error: ${error}`));
  }

  /** What the game tells its page; `null` before it runs. */
  status() {
    return this.page.evaluate(() => window.tandem ?? null);
  }

  /** Waits until the status is as expected, and returns it. */
  async until(expectation, predicate, patience_ms = PATIENCE_MS) {
    const deadline = Date.now() + patience_ms;
    for (;;) {
      const status = await this.status();
      if (status && predicate(status)) return status;
      if (Date.now() > deadline) {
        const message = await this.page.textContent("#message").catch(() => "");
        throw new Error(`${expectation}: not within ${patience_ms} ms; the page says ${JSON.stringify(status)} ` +
          `${message}\n${this.log.slice(-20).join("\n")}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  /**
   * Holds keys until the ship has moved: each in turn, since there may be a wall. Returns which key moved it, and how
   * far.
   */
  async steer() {
    const ways = [["KeyD", "x", 1], ["KeyA", "x", -1], ["KeyW", "y", 1], ["KeyS", "y", -1]];
    const deadline = Date.now() + PATIENCE_MS;
    while (Date.now() < deadline) {
      for (const [key, axis, sign] of ways) {
        // A wreck comes back elsewhere, and that is not steering.
        const before = await this.until("the ship is whole", (tandem) => tandem.own?.health > 0);
        await this.page.keyboard.down(key);
        await new Promise((resolve) => setTimeout(resolve, 700));
        const after = await this.status();
        await this.page.keyboard.up(key);
        const distance = sign * (after.own?.[axis] - before.own[axis]);
        if (after.own?.health > 0 && distance > 1 && distance < 30) return { key, distance };
      }
    }
    throw new Error(`no key moves the ship: ${JSON.stringify(await this.status())}\n${this.log.slice(-20).join("\n")}`);
  }

  /** Waits until another player's ship has moved. */
  async seeOtherMove() {
    const first = await this.until("there is another player", (tandem) => tandem.others.length > 0);
    const places = new Map(first.others.map((ship) => [ship.number, ship]));
    let seen;
    await this.until("another player moves", (tandem) => tandem.others.some((ship) => {
      const before = places.get(ship.number);
      seen = before && { name: ship.name, distance: Math.hypot(ship.x - before.x, ship.y - before.y) };
      return seen?.distance > 1;
    }));
    return seen;
  }

  /** Stands still as the page of a tab in the background does: no frames, while messages go on coming. */
  async standStill(duration_ms) {
    await this.page.evaluate(() => window.holdFrames(true));
    await new Promise((resolve) => setTimeout(resolve, duration_ms));
    const frames = (await this.status()).frames;
    await this.page.evaluate(() => window.holdFrames(false));
    return frames;
  }

  /** Frames drawn in a second. */
  async framesPerSecond() {
    const before = await this.status();
    await new Promise((resolve) => setTimeout(resolve, 3_000));
    return ((await this.status()).frames - before.frames) / 3;
  }

  screenshot(path) {
    return this.page.screenshot({ path });
  }

  /** What no page should say. */
  complaints() {
    return this.log.filter((line) => /panicked|RuntimeError|unreachable|^error: (Error|Type)/.test(line));
  }

  close() {
    return this.context.close();
  }
}

/** Runs in the page, before its own scripts: lets a test take away its frames, as a browser does in the background. */
function holdFrames() {
  const request = window.requestAnimationFrame.bind(window);
  let held = null;
  window.requestAnimationFrame = (callback) => {
    if (held === null) return request(callback);
    held.push(callback);
    return 0;
  };
  window.holdFrames = (hold) => {
    const waiting = held ?? [];
    held = hold ? (held ?? []) : null;
    if (!hold) waiting.forEach((callback) => request(callback));
  };
}
