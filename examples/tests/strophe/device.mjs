// A device played by Strophe.js, which knows nothing of the relay: it logs in over BOSH with SCRAM and answers what it
// is asked with an ordinary iq.
//
//     node device.mjs URL JID TOKEN
//
// Its lines on the standard output are the states of the connection, and `request ID OBJECT` for each request. The
// object asked for says what it answers: `level` an element of its own, `empty` nothing, `missing` an iq error, `deaf`
// not at all.

import { Strophe, $iq } from 'strophe.js';
import { XMLHttpRequest } from './xhr.mjs';

globalThis.XMLHttpRequest = XMLHttpRequest;
Strophe.setLogLevel(Strophe.LogLevel.ERROR);

const [url, jid, token] = process.argv.slice(2);
const STATES = Object.fromEntries(Object.entries(Strophe.Status).map(([name, value]) => [value, name.toLowerCase()]));
const say = (...words) => console.log(words.join(' '));

const connection = new Strophe.Connection(url, { mechanisms: [Strophe.SASLSHA256] });

connection.addHandler((iq) => {
    const [id, from, type] = ['id', 'from', 'type'].map((name) => iq.getAttribute(name));
    if (type !== 'get' && type !== 'set') {
        return true;
    }
    const object = iq.getElementsByTagName('object')[0]?.textContent ?? '';
    say('request', id, object);
    switch (object) {
        case 'level':
            connection.send($iq({ type: 'result', id, to: from }).c('level', { xmlns: 'urn:example:toner', color: 'black' }).t('43 <%>'));
            break;
        case 'missing':
            connection.send($iq({ type: 'error', id, to: from }).c('error', { type: 'cancel' })
                .c('item-not-found', { xmlns: 'urn:ietf:params:xml:ns:xmpp-stanzas' }));
            break;
        case 'deaf':
            break;
        default:
            connection.send($iq({ type: 'result', id, to: from }));
    }
    return true;
}, null, 'iq');

connection.connect(jid, token, (status, condition) => {
    say(STATES[status] ?? status, condition ?? '');
    if (status === Strophe.Status.AUTHFAIL || status === Strophe.Status.CONNFAIL || status === Strophe.Status.DISCONNECTED) {
        process.exit(1);
    }
});

// `bye` on the standard input is an orderly end.
process.stdin.on('data', () => connection.disconnect('bye'));
