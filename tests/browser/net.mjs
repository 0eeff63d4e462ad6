// What stands between the browser and the server.

import net from "node:net";

/** A port of this machine that nobody uses now. */
export function freePort() {
  return new Promise((resolve, reject) => {
    const server = net.createServer();
    server.on("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

/** Forwards TCP, and can be cut. */
export class Proxy {
  /** What goes on comes from this address of loopback: 127.0.0.1 if none is given. */
  static async to(port, localAddress) {
    const proxy = new Proxy(port, localAddress);
    await new Promise((resolve, reject) => {
      proxy.server.on("error", reject);
      proxy.server.listen(0, "127.0.0.1", resolve);
    });
    proxy.port = proxy.server.address().port;
    return proxy;
  }

  constructor(port, localAddress) {
    this.sockets = new Set();
    /** Connections so far. */
    this.accepted = 0;
    this.isCut = false;
    this.server = net.createServer((near) => {
      if (this.isCut) {
        near.resetAndDestroy();
        return;
      }
      this.accepted += 1;
      const far = net.connect({ port, host: "127.0.0.1", localAddress });
      for (const socket of [near, far]) {
        this.sockets.add(socket);
        socket.setNoDelay();
        socket.on("error", () => {});
        socket.on("close", (failed) => {
          this.sockets.delete(socket);
          // One that ends well takes the other along by itself, once that has sent what it still holds.
          if (failed) [near, far].forEach((side) => side.destroy());
        });
      }
      near.pipe(far).pipe(near);
    });
  }

  /** Ends all connections at once, without a word of either side, and lets no new ones through until it is mended. */
  cut() {
    this.isCut = true;
    for (const socket of this.sockets) socket.resetAndDestroy();
  }

  mend() {
    this.isCut = false;
  }

  close() {
    this.cut();
    this.server.close();
  }
}
