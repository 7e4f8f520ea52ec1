// A program that answers what no server should: the bytes that its path names, or without an end.
const net = require('net');

net.createServer((socket) => {
  let seen = '';
  socket.on('error', () => {});
  socket.on('data', (data) => {
    seen += data;
    if (!seen.includes('\r\n\r\n')) return;
    const path = seen.split(' ')[1].slice(1);
    seen = '';
    if (path === 'ready') return socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok');
    if (path === 'hangup') return socket.destroy();
    if (path === 'headers' || path === 'line' || path === 'hints') {
      socket.write(path === 'hints' ? '' : 'HTTP/1.1 200 OK\r\nX: ');
      const hint = `HTTP/1.1 103 Early Hints\r\nLink: ${'x'.repeat(2000)}\r\n\r\n`;
      const piece = { headers: 'x\r\nX-More: ', line: 'x'.repeat(64), hints: hint }[path];
      const block = piece.repeat(200);
      const more = () => {
        for (let n = 0; n < 50 && !socket.destroyed; n++) if (!socket.write(block)) break;
        if (!socket.destroyed) setTimeout(more, 1);
      };
      return more();
    }
    // And goes on as if nothing was.
    if (path.startsWith('kept.')) return socket.write(Buffer.from(path.slice(5), 'base64url'));
    socket.end(Buffer.from(path, 'base64url'));
  });
}).listen(process.env.PORT, '127.0.0.1');
