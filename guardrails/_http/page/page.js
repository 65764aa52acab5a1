"use strict";
// Shows status.json and history.json, which are beside this page. Every text of the service may be hostile: it is only
// ever set as text.

const EVERY = 2000;       // milliseconds between two readings
const SPAN = 120;         // seconds in a chart
const MANY = 0.05;        // a guard that refuses more than this share of its calls is not well
const LATELY = 10;        // seconds that decide it
const MOST_ROWS = 60;     // guards in the table; with more of them the unwell ones come first
const MOST_CARDS = 4;     // cards that open by themselves
const MOST_HOLDERS = 15;  // rows in the smaller tables, until "show all" is pressed
const HEIGHT = 170;       // pixels of a chart
const MOST_PROCESSES = 8; // processes behind one address whose figures are kept

// --- the document ---------------------------------------------------------------------------------

const byId = id => document.getElementById(id);
const h = (tag, attributes, ...kids) =>
  ({tag, attributes: attributes || {}, kids: kids.flat(Infinity).filter(kid => kid || kid === 0)});

// Makes the children of a node equal to a description, and keeps the nodes that fit: focus and selection stay.
function patch(parent, kids) {
  let node = parent.firstChild;
  for (const kid of kids) {
    const fit = fitting(parent, node, kid);
    if (fit && fit === node) node = node.nextSibling;
    else if (fit) parent.insertBefore(fit, node);
    update(fit || parent.insertBefore(made(parent, kid), node), kid);
  }
  while (node) {
    const next = node.nextSibling;
    node.remove();
    node = next;
  }
}

function fitting(parent, node, kid) {
  if (kid instanceof Node) return kid.parentNode === parent ? kid : null;
  if (!kid.tag) return node && node.nodeType === Node.TEXT_NODE ? node : null;
  const {key} = kid.attributes, fits = one => one.localName === kid.tag && one.key === key;
  if (key === undefined) return node && fits(node) ? node : null;
  while (node && !fits(node)) node = node.nextSibling;
  return node;
}

function made(parent, kid) {
  if (kid instanceof Node) return kid;
  if (!kid.tag) return document.createTextNode("");
  const isDrawing = kid.tag === "svg" || parent.localName === "svg";
  return document.createElementNS(isDrawing ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", kid.tag);
}

function update(node, kid) {
  if (kid === node) return;
  if (!kid.tag) {
    if (node.nodeValue !== String(kid)) node.nodeValue = kid;
    return;
  }
  for (const name of node.getAttributeNames()) if (!(name in kid.attributes)) node.removeAttribute(name);
  for (const [name, value] of Object.entries(kid.attributes)) {
    if (name === "key" || typeof value === "function") node[name] = value;
    else if (value === undefined || value === null || value === false) node.removeAttribute(name);
    else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
  }
  patch(node, kid.kids);
}

// A table whose rows are cards on a narrow screen, with the name of each figure beside it. "#" marks columns of numbers.
function table(name, columns, rows) {
  const titles = columns.map(column => column.replace("#", "")), kinds = columns.map(column => column.startsWith("#") && "number");
  return h("div", {class: "sheet"}, h("table", {"aria-label": name},
    h("thead", null, h("tr", null, titles.map((title, i) => h("th", {scope: "col", class: kinds[i]}, title)))),
    h("tbody", null, rows.map(({key, kind, cells}) => h("tr", {key, class: kind || false}, cells.map((cell, i) =>
      i ? h("td", {class: kinds[i], "data-name": titles[i]}, h("div", null, cell)) : h("th", {scope: "row"}, cell)))))));
}

// --- words ----------------------------------------------------------------------------------------

const STATES = {closed: "good", open: "bad", forced_open: "bad", half_open: "between"};
const MODES = {
  shadow: "refuses and stops nothing; counts what it would have done",
  off: "lets every call pass and learns nothing",
};
const DOING = {
  statement: "in a statement",
  waiting: "held on purpose: a subscriber, or a command that waits",
  other_work: "other work; nothing runs on it",
  nested: "wants a second connection",
  gone: "leaked: its code has ended",
};
const TIMES = [["wait", "wait for a connection"], ["hold", "hold"], ["use", "statement"], ["connect", "opening"]];
const TOTALS = ["checkouts", "waits", "timeouts", "exhausted", "opened", "closed", "invalidated"];

const known = value => value !== null && value !== undefined;
const some = (number, one, many = one + "s") => number === 1 ? `one ${one}` : `${number} ${many}`;
const joined = (parts, between = ", ") => parts.filter(Boolean).join(between);
const sum = numbers => numbers.reduce((total, number) => total + number, 0);
const listed = value => Array.isArray(value) ? value : [];
const grouped = (items, key) => [...items.reduce((groups, item) =>
  groups.set(key(item), [...(groups.get(key(item)) || []), item]), new Map()).values()];
const pairs = value => value && typeof value === "object" ? Object.entries(value) : [];
const counts = value => pairs(value).filter(([, count]) => count).map(([what, count]) => `${what} ${count}`).join(", ");
const percent = share => `${Math.ceil(100 * share)} %`;
const clock = seconds => new Date(1000 * seconds).toLocaleTimeString([], {hourCycle: "h23"});

function duration(seconds) {
  if (!known(seconds)) return "-";
  if (seconds > 0 && seconds < 0.0001) return `${(1e6 * seconds).toFixed(0)} µs`;
  if (seconds < 0.01) return `${(1000 * seconds).toFixed(1)} ms`;
  if (seconds < 1) return `${(1000 * seconds).toFixed(0)} ms`;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 100 ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${(minutes / 60).toFixed(1)} h`;
}

// --- what is known of each guard ------------------------------------------------------------------

const processes = new Map();  // by process: what this page has read of it, by path: its last two minutes, counts, points

// Guards of one name are told apart by their number, as in Prometheus.
function* flat(guards, above = "") {
  const named = new Map();
  for (const guard of listed(guards)) {
    const number = (named.get(guard.name) || 0) + 1;
    named.set(guard.name, number);
    const path = above + guard.name + (number > 1 ? ` (${number})` : "");
    yield {path, guard, isPart: above !== ""};
    yield* flat(guard.compartments, path + "/");
  }
}

const refusals = guard => sum(Object.values(guard.rejected || {}));
const counted = guard => ({
  in: guard.admitted, refused: refusals(guard), failed: guard.failed, slow: guard.slow,
  would: sum(Object.values(guard.would_reject || {})), stop: guard.would_stop || 0,
});

// One point of the charts: rates since the reading before, and figures of this moment.
function point(guard, now, before) {
  const fresh = counted(guard), rates = {};
  for (const kind in fresh)  // a process that began anew counts from zero
    rates[kind] = before ? Math.max(0, fresh[kind] - before.counted[kind]) / (now - before.at) : null;
  return {at: now, ...rates, in_use: guard.in_use, waiting: guard.waiting};
}

// The service itself keeps the last two minutes, a row for each second, so that this page may come late.
function* kept(history, now) {
  for (const {path, guard} of flat(history && history.guards))
    yield [path, listed(guard.rows).map(row => {
      const read = Object.fromEntries(listed(history.columns).map((name, i) => [name, row[i]]));
      return {...read, at: now - read.seconds_ago, in: read.admitted, would: read.would_reject};
    })];
}

// With several workers the next answer may be another one's, so that history and figures are kept by process.
function memory({pid, host}) {
  const process = `${pid}@${host}`, read = processes.get(process) || {rows: new Map(), guards: new Map()};
  processes.delete(process);
  processes.set(process, read);  // the last one is the newest
  for (const old of processes.keys()) if (processes.size > MOST_PROCESSES) processes.delete(old);
  return read;
}

function notice(page, history, now) {
  if (history && known(history.pid)) memory(history).rows = new Map(kept(history, now));
  const {rows, guards} = memory(page), all = [...flat(page.guards)];
  for (const one of all) {
    const before = guards.get(one.path), own = before ? before.own : [];
    own.push(point(one.guard, now, before));
    while (own[0].at < now - SPAN) own.shift();
    // The service's rows, and what this page has read since, if the last answers were other processes'.
    const theirs = (rows.get(one.path) || []).filter(each => each.at >= now - SPAN), last = theirs[theirs.length - 1];
    const curve = last ? [...theirs, ...own.filter(each => each.at > last.at + 1.5)] : own;
    Object.assign(one, {curve, latest: own[own.length - 1], mode: one.guard.mode || "enforce"});
    guards.set(one.path, {at: now, counted: counted(one.guard), own});
  }
  for (const [path, kept] of guards) if (kept.at !== now) guards.delete(path);
  all.forEach(judge);
  return all;
}

// Recent refusals count, whatever the circuit's state: a full pool refuses with a closed circuit.
function judge(one) {
  const lately = one.curve.filter(each => each.at > one.latest.at - LATELY && known(each.in));
  const refused = sum(lately.map(each => (one.mode === "shadow" ? each.would : each.refused) || 0));
  // In shadow, `in` has only the calls that enforcing would let in.
  const all = sum(lately.map(each => each.in + each.refused + (each.would || 0)));
  const {guard} = one, enforces = one.mode === "enforce";
  one.share = all > 0 ? Math.min(1, refused / all) : 0;
  one.isShut = enforces && ["open", "forced_open"].includes(guard.state);
  one.refuses = enforces && !one.isShut && one.share > MANY;
  one.isExhausted = known(guard.cause) && guard.cause !== "free";
  one.leaks = listed(guard.holders).filter(holder => holder.doing === "gone").length;
  one.unwell = one.isShut || one.refuses || one.isExhausted || one.leaks > 0;
}

// --- charts ---------------------------------------------------------------------------------------

const drawn = new Map();  // by path and title
const ink = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function axis(values, size, grid) {
  return {stroke: ink("soft"), grid: {stroke: ink("edge"), width: 1, ...grid}, ticks: {show: false}, values, size, gap: 4,
    font: "12px system-ui, sans-serif"};
}

const upward = (_, least, most) => [0, 1.15 * (most || 1)];
const powers = (_, splits) => splits.map(split => Number.isInteger(Math.round(1e6 * Math.log10(split)) / 1e6) ? split : null);
const decades = (_, least, most) => known(least) ? [10 ** Math.floor(Math.log10(least)), 10 ** Math.ceil(Math.log10(most * 1.01))] : [0.001, 1];

function draw(series, format, data, now) {
  const box = document.createElement("div"), shown = {box, now}, isTime = format === duration;
  shown.plot = new uPlot({
    width: 300, height: HEIGHT, cursor: {sync: {key: "all"}, drag: {x: false, y: false}, y: false},
    scales: {x: {range: () => [shown.now - SPAN, shown.now]}, y: isTime ? {distr: 3, range: decades} : {range: upward}},
    axes: [{...axis((_, ticks) => ticks.map(clock), 24), space: 90},
      axis((_, ticks) => ticks.map(tick => known(tick) ? format(tick) : ""), 56, isTime && {filter: powers})],
    series: [{label: "at", value: (_, at) => known(at) ? clock(at) : "-"}, ...series.map(line => ({
      label: line.name, stroke: ink(line.ink), dash: line.dash, width: 2, points: {show: isTime, size: 4},
      value: (_, value) => known(value) ? format(value) : "-"}))],
  }, data, box);
  box.setAttribute("role", "img");
  new ResizeObserver(() => {
    if (!box.clientWidth) return;
    shown.plot.setSize({width: box.clientWidth, height: HEIGHT});
    showLast(shown);
  }).observe(box);
  return shown;
}

// Without the pointer on it, the legend has the newest values.
function showLast({plot}) {
  if (!(plot.cursor.left >= 0)) plot.setLegend({idx: plot.data[0].length - 1});
}

// A chart of one guard. What it shows now is in its label, too, and in the tables.
function figure(one, title, format, series) {
  const key = one.path + "\n" + title + series.length, {curve, latest} = one;
  const data = [curve.map(each => each.at), ...series.map(line => curve.map(line.read))];
  const shown = drawn.get(key) || draw(series, format, data, latest.at);
  drawn.set(key, shown);
  Object.assign(shown, {now: latest.at, isSeen: true});
  shown.plot.setData(data);
  showLast(shown);
  const last = curve[curve.length - 1], now = series.map(line => `${line.name} ${known(line.read(last)) ? format(line.read(last)) : "-"}`);
  shown.box.setAttribute("aria-label", `${title} in the last two minutes; now ${now.join(", ")}`);
  return h("figure", {key: title}, h("figcaption", null, title), shown.box);
}

function dropCharts(isUnused) {
  for (const [key, shown] of drawn) {
    if (isUnused(shown)) {
      shown.plot.destroy();
      drawn.delete(key);
    }
    shown.isSeen = false;
  }
}

// A small curve in the table: admissions and refusals.
function spark({curve}) {
  const kinds = [["in", "in"], ["refused", "bad"], ["would", "shadow"]].filter(([kind]) => curve.some(each => each[kind]));
  const most = Math.max(1, ...curve.flatMap(each => kinds.map(([kind]) => each[kind] || 0)));
  const last = curve[curve.length - 1].at;
  const points = kind => curve.filter(each => known(each[kind])).map(each =>
    `${(118 - 116 * (last - each.at) / SPAN).toFixed(1)},${(26 - 24 * each[kind] / most).toFixed(1)}`).join(" ");
  return h("svg", {viewBox: "0 0 120 28", preserveAspectRatio: "none", "aria-hidden": "true"},
    kinds.map(([kind, name]) => h("polyline", {class: name, points: points(kind)})));
}

// --- the table of all guards ----------------------------------------------------------------------

const chosen = new Map();   // by path: whether its card is open; decided by the user, or once by trouble
const expanded = new Set(); // the small tables that are shown whole
let filter = "";

function circuit({guard, mode, share}) {
  const word = known(guard.state) ? guard.state : "-", isShadow = mode === "shadow";
  const ink = mode === "enforce" ? (share > MANY && STATES[word] === "good" ? "between" : STATES[word]) : "soft";
  const refuses = share > MANY && mode !== "off" &&
    h("small", {class: isShadow ? "shadow" : share >= 0.5 ? "bad" : "between"},
      `${isShadow ? "would refuse" : "refuses"} ${percent(share)} of its calls`);
  return [
    h("span", {class: ink}, word), refuses,
    known(guard.retry_after) && h("small", null, `again in ${guard.retry_after.toFixed(1)} s`),
    known(guard.failure_rate) &&
      h("small", null, `${(100 * guard.failure_rate).toFixed(0)} % failed, ${(100 * guard.slow_call_rate).toFixed(0)} % slow`),
  ];
}

const mark = mode => mode !== "enforce" && h("b", {class: "mark " + mode}, mode);
const bar = (used, most) => h("meter", {min: 0, max: most, value: used, low: most * 0.7, high: most - 0.5, optimum: 0, "aria-hidden": "true"});
const rate = value => known(value) ? value.toFixed(1) : "-";

function row(one) {
  const {path, guard, mode, latest} = one, isOpen = chosen.get(path) === true;
  const refused = counts(guard.rejected), would = counts(guard.would_reject);
  const name = [
    h("button", {type: "button", class: "name", "aria-expanded": String(isOpen), onclick: () => choose(path, !isOpen)}, path),
    mark(mode),
    refused && h("small", null, `refused: ${refused}`),
    would && h("small", null, `would have refused: ${would}`),
  ];
  const refusing = [rate(latest.refused), mode === "shadow" && h("small", {class: "shadow"}, `would be ${rate(latest.would)}`)];
  return {key: path, kind: mode, cells: [
    name, circuit(one), [`${guard.in_use}/${guard.max_concurrent_calls}`, bar(guard.in_use, guard.max_concurrent_calls),
      guard.usable_slots < guard.max_concurrent_calls && h("small", null, `usable: ${guard.usable_slots}`)],
    String(guard.waiting), rate(latest.in), refusing, rate(latest.failed), rate(latest.slow),
    known(guard.oldest_in_flight) ? duration(guard.oldest_in_flight) : "-", spark(one)]};
}

function choose(path, isOpen) {
  chosen.set(path, isOpen);
  render();
}

function overview(all) {
  const wanted = filter.toLowerCase(), matching = all.filter(one => one.path.toLowerCase().includes(wanted));
  const isMany = all.length > MOST_ROWS;
  const ordered = isMany ? [...matching].sort((a, b) => b.unwell - a.unwell) : matching;
  const hidden = matching.length - MOST_ROWS;
  const columns = ["guard", "circuit", "slots", "#waiting", "#in/s", "#refused/s", "#failed/s", "#slow/s", "#oldest",
    "in, refused"];
  return [
    h("h2", null, "Guards"),
    isMany && h("p", null, h("label", null, "Only names with ",
      h("input", {type: "search", oninput: event => { filter = event.target.value; render(); }})),
      ` ${some(matching.length, "guard")} of ${all.length}`,
      hidden > 0 && `; the first ${MOST_ROWS} are shown, unwell ones before the others`),
    table("Guards", columns, ordered.slice(0, MOST_ROWS).map(row)),
  ];
}

// --- cards ----------------------------------------------------------------------------------------

// The start of a long table, and a button for the rest.
function shortened(id, name, columns, rows) {
  const isWhole = expanded.has(id), rest = rows.length - MOST_HOLDERS;
  const turn = () => { isWhole ? expanded.delete(id) : expanded.add(id); render(); };
  return [
    table(name, columns, isWhole ? rows : rows.slice(0, MOST_HOLDERS)),
    rest > 0 && h("button", {type: "button", onclick: turn}, isWhole ? "show fewer" : `show all ${rows.length}`),
  ];
}

// The innermost line of the application, and the lines that called it.
const code = lines => listed(lines).length ? [h("code", null, lines[0]), lines.slice(1).map(line => h("small", null, h("code", null, line)))] : "-";
const codeLocation = ({where, route}) => [listed(where).length ? h("code", null, where[0]) : "an unknown line", route && `, ${route}`];
// The automatic compartment of a route has its name.
const routeOf = ({route, compartment}) => compartment && route && !compartment.endsWith(route) ? `${route}, in ${compartment}` : compartment || route || "-";

function blocker(session) {
  if (!session.pid) return ["a prepared transaction, which has no session"];
  const state = session.state === "unseen" ? "" : `, ${session.state.replaceAll("_", " ")} for ${duration(session.seconds)}`;
  const whose = listed(session.where).length ? [", held by ", codeLocation(session)] : session.application ? ` of ${session.application}` : "";
  return [`${session.likely ? "likely " : ""}session ${session.pid}`, whose, state];
}

function lockWait(wait) {
  return h("li", null,
    `${listed(wait.pids).length} × `, codeLocation(wait), ` wait up to ${duration(wait.seconds)} for a lock`, wait.table && ` on ${wait.table}`,
    h("div", {class: "blocker"}, "← ", listed(wait.blockers).length
      ? wait.blockers.map((session, i) => [i ? " and " : "", blocker(session)]) : "a session that the server does not name"));
}

function cause({guard, isExhausted}) {
  const waits = listed(guard.lock_waits);
  if (!isExhausted && !waits.length) return null;
  return h("div", {class: "box bad-edge", key: "cause"},
    h("h3", null, isExhausted ? `No connection is left: ${guard.advice || guard.cause}` : "Waits for locks"),
    waits.length > 0 && h("ul", null, waits.slice(0, MOST_HOLDERS).map(lockWait)),
    waits.length > 0 && known(waits[0].asked) && h("small", null, `The server was asked ${duration(waits[0].asked)} ago.`));
}

const hasEnded = holder => holder.doing === "gone";

function leaked({guard}) {
  const all = grouped(listed(guard.holders).filter(hasEnded), each => joined([...listed(each.where), each.route]));
  return all.length > 0 && h("div", {class: "box bad-edge", key: "leak"},
    h("h3", null, "Leak: connections were not returned; close them in a with block"),
    h("ul", null, all.slice(0, MOST_HOLDERS).map(each => h("li", null, `${each.length} × `, codeLocation(each[0]), `, held for up to ${duration(each[0].seconds)}`))));
}

// Connections that were checked out at one line, and do the same, share a row. The longest is first.
function holders({path, guard, leaks}, now) {
  if (!known(guard.holders)) return null;
  const alike = grouped(listed(guard.holders), each => JSON.stringify([each.doing, each.where, each.now, each.route, each.compartment]));
  const pids = (all, read) => [...new Set(all.flatMap(read).filter(known))].sort((a, b) => a - b);
  const few = numbers => joined(numbers.slice(0, 6)) + (numbers.length > 6 ? ` and ${numbers.length - 6} more` : "") || "-";
  const rows = alike.map(all => ({kind: hasEnded(all[0]) && "leak", cells: [
    [duration(all[0].seconds), h("small", null, `since ${clock(now - all[0].seconds)}`)], all.length,
    h("span", {class: hasEnded(all[0]) && "bad"}, all[0].at_yield ? "held across a yield" : DOING[all[0].doing] || all[0].doing),
    code(all[0].where), code(all[0].now), routeOf(all[0]),
    few(pids(all, each => each.pid)), few(pids(all, each => listed(each.blocked_by)))]}));
  return [
    h("h3", null, "Holders", leaks > 0 && h("b", {class: "mark leak"}, some(leaks, "leak"))),
    rows.length ? shortened(path + "\nholders", "Holders", ["held for", "#number", "doing", "checked out at", "now at", "route", "session", "blocked by"], rows)
      : h("p", null, "No connection is out."),
  ];
}

function lease(lease) {
  if (!lease) return [];
  const facts = [["budget", `${lease.budget}: ${lease.connections}`], ["workers", lease.workers], ["lease", lease.limit],
    ["wants", lease.wants], ["safe share", lease.safe_share], ["store", lease.in_contact ? "in contact" : "no contact"]];
  return [
    h("h3", null, "Fleet"),
    h("dl", {class: "facts"}, facts.map(([name, value]) =>
      h("div", null, h("dt", null, name), h("dd", null, String(value))))),
  ];
}

function connections({pool}) {
  const facts = [["open", pool.open], ["in use", pool.in_use], ["idle", pool.idle], ["overflow", pool.overflow],
    ["waiting", pool.waiting], ["capacity", pool.capacity], ...TOTALS.map(name => [name, pool[name]])];
  return [
    ...lease(pool.lease),
    h("h3", null, "Connections"),
    h("dl", {class: "facts"}, facts.filter(([, value]) => known(value)).map(([name, value]) =>
      h("div", null, h("dt", null, name), h("dd", null, String(value))))),
  ];
}

function times({guard, curve, latest}) {
  const {pool} = guard, lately = curve.filter(each => each.at > latest.at - LATELY);
  const worst = kind => Math.max(...lately.map(each => each[kind + "_p99"] || 0)) || null;
  const rows = TIMES.filter(([kind]) => pool[kind] && pool[kind].count).map(([kind, name]) => ({cells: [
    name, duration(worst(kind)), duration(pool[kind].p50), duration(pool[kind].p99), pool[kind].count]}));
  return [h("h3", null, "Times"),
    !rows.length ? h("p", null, "No connection was taken yet.") : table("Times", ["time", `#p99 of ${LATELY} s`, "#p50 since start", "#p99 since start", "#count"], rows)];
}

function routes({path, guard}) {
  const all = listed(guard.pool.routes).filter(each => (each.route || each.compartment) && each.wait.count);
  if (!all.length) return null;
  // A route may run in a declared compartment and outside of all.
  const hasParts = all.some(each => each.compartment);
  const name = each => routeOf(each) + (hasParts && !each.compartment ? ", in no compartment" : "");
  const both = times => times.count ? `${duration(times.p50)} / ${duration(times.p99)}` : "-";
  const rows = [...all].sort((a, b) => b.hold.sum - a.hold.sum).map(each => ({
    key: `${each.route}\n${each.compartment}`, cells: [
      name(each), each.wait.count, both(each.wait),
      both(each.hold), both(each.use)]}));
  return [h("h3", null, "Routes, those that hold longest first"),
    shortened(path + "\nroutes", "Routes", ["route", "#checkouts", "#wait p50 / p99", "#hold p50 / p99", "#statement p50 / p99"], rows)];
}

// What enforcing would have done.
function shadow({path, guard, mode}) {
  const sums = guard.shadow || {}, reasons = {};
  const stopped = known(sums.stopped) ? sums.stopped : guard.would_stop || 0;
  for (const [reason, count] of pairs(sums.routes).flatMap(([, each]) => pairs(each)))  // those of compartments, too
    reasons[reason] = (reasons[reason] || 0) + count;
  const refused = known(sums.refused) ? sums.refused : sum(Object.values(reasons));
  if (mode !== "shadow" && !refused && !stopped) return null;
  const since = known(sums.since) ? ` since ${new Date(1000 * sums.since).toLocaleString()}` : "";
  const byRoute = pairs(sums.routes).map(([route, reasons]) => [route, reasons, sum(Object.values(reasons))])
    .sort((a, b) => b[2] - a[2]);
  const longest = listed(sums.longest);
  return h("div", {class: "box shadow-edge", key: "shadow"},
    h("h3", null, `Enforcing would have refused ${some(refused, "call")}${known(sums.judged) ? ` of ${sums.judged}` : ""} and stopped ${stopped}${since}`),
    refused > 0 && h("p", null, counts(reasons)),
    byRoute.length > 0 && shortened(path + "\nshadow", "Refusals by route", ["route", "#would have been refused", "for"],
      byRoute.map(([route, reasons, total]) => ({key: route, cells: [route, total, counts(reasons)]}))),
    longest.length > 0 && shortened(path + "\nstops", "The longest calls beyond their timeout", ["took", "#timeout", "made at", "route"],
      longest.map(stop => ({cells: [duration(stop.took) + (stop.running ? ", still running" : ""), duration(stop.timeout),
        stop.where ? h("code", null, stop.where) : "-", stop.route || "-"]}))));
}

function plots(one) {
  const {guard, mode, curve} = one, count = value => String(Math.round(10 * value) / 10);
  const line = (name, ink, read, dash) => ({name, ink, read, dash});
  return h("div", {class: "charts", key: "charts"},
    figure(one, "Calls per second", count, [
      line("in", "in", each => each.in), line("refused", "bad", each => each.refused),
      line("failed", "between", each => each.failed),
      ...(mode === "shadow" ? [line("would be refused", "shadow", each => each.would, [6, 4])] : [])]),
    figure(one, guard.pool ? "Connections" : "Slots", count, [
      line("in use", "in", each => each.in_use), line("waiting", "bad", each => each.waiting),
      line("limit", "soft", () => guard.max_concurrent_calls, [3, 4])]),
    guard.pool && curve.some(each => "hold_p99" in each) && figure(one, "Time to get a connection, and time held", duration, [
      line("wait p50", "in", each => each.wait_p50 || null, [3, 4]), line("wait p99", "in", each => each.wait_p99 || null),
      line("hold p50", "between", each => each.hold_p50 || null, [3, 4]), line("hold p99", "between", each => each.hold_p99 || null)]));
}

function card(one) {
  const {path, guard, mode} = one;
  return h("section", {key: path, class: joined(["card", mode, one.unwell && "unwell"], " "), "aria-label": path},
    h("div", {class: "head"},
      h("h2", null, path, mark(mode)),
      h("button", {type: "button", onclick: () => choose(path, false), "aria-label": `Close ${path}`}, "Close")),
    MODES[mode] && h("p", {class: mode}, `In mode ${mode}: ${MODES[mode]}.`),
    h("p", {key: "circuit"}, "Circuit: ", circuit(one)),
    cause(one), leaked(one), shadow(one), plots(one), holders(one, latest.at),
    guard.pool && h("div", {class: "columns"}, h("div", null, times(one)), h("div", null, connections(guard))),
    guard.pool && routes(one));
}

const EVENTS = {
  exhausted: each => each.words || `no connection is left: ${each.cause}`,
  lock_waits: each => each.words,
  state: each => `circuit ${each.old} → ${each.new}${each.cause ? `: ${each.cause}` : ""}`,
  leak: each => [`connection ${each.cause === "dropped" ? "dropped" : "not returned"} after ${duration(each.seconds)}, checked out at `, codeLocation(each)],
};

function events(page) {
  const all = [...listed(page.events)].reverse();
  if (!all.length) return null;
  const rows = all.map(each => ({key: `${each.at} ${each.guard} ${each.compartment} ${each.new}`, cells: [clock(each.at),
    each.compartment ? `${each.guard} / ${each.compartment}` : each.guard,
    EVENTS[each.event] ? EVENTS[each.event](each) : each.event]}));
  return [h("h2", null, "Last events"), shortened("events", "Last events", ["at", "guard", "event"], rows)];
}

// Cards of up to MOST_CARDS guards open by themselves, the unwell ones first. Only the user closes one.
function openCards(all) {
  const own = all.filter(one => !one.isPart), unwell = all.filter(one => one.unwell);
  const wanted = own.length <= MOST_CARDS ? [...unwell, ...own] : unwell;
  for (const one of wanted) {
    const open = [...chosen.values()].filter(Boolean).length;
    if (!chosen.has(one.path) && open < MOST_CARDS) chosen.set(one.path, true);
  }
  return all.filter(one => chosen.get(one.path));  // in the order of the table
}

// --- the page -------------------------------------------------------------------------------------

let latest = null, isPaused = false, hasHistory = true;

function verdict(page, all) {
  const number = test => all.filter(test).length, verb = count => count === 1 ? "" : "s";
  const shut = number(one => one.isShut), refusing = number(one => one.refuses);
  const leaks = sum(all.map(one => one.leaks)), empty = number(one => one.isExhausted);
  const troubles = [
    shut && `${some(shut, "circuit")} ${shut === 1 ? "is" : "are"} open`,
    refusing && `${some(refusing, "guard")} refuse${refusing === 1 ? "s" : ""} calls`,
    empty && `${some(empty, "pool")} ${empty === 1 ? "has" : "have"} no connection left`,
    leaks && `${some(leaks, "connection")} leaked`,
  ].filter(Boolean);
  if (!page.ready) return ["not ready: " + listed(page.reasons).join(", "), "bad"];
  return [joined(["ready", ...troubles]), troubles.length ? "between" : "good"];
}

function say([words, ink]) {
  const verdict = byId("verdict");
  if (verdict.textContent !== words) verdict.textContent = words;  // a screen reader speaks changes only
  verdict.className = ink;
  document.title = `${words} - guardrails`;
}

function modes(all) {
  return Object.keys(MODES).map(mode => {
    const own = all.filter(one => !one.isPart), those = own.filter(one => one.mode === mode);
    return those.length > 0 && h("p", {class: `box ${mode}-edge`, key: mode}, mark(mode),
      ` ${those.length === own.length ? "Every guard" : `${some(those.length, "guard")} of ${own.length}`}: ${MODES[mode]}.`);
  });
}

function render() {
  if (!latest) return;
  const {page, all, at} = latest;
  dropCharts(() => false);
  patch(byId("body"), [modes(all), overview(all), openCards(all).map(card), events(page)].flat(Infinity).filter(Boolean));
  dropCharts(shown => !shown.isSeen);
  const others = processes.size > 1 ? `, one of ${processes.size} that answer here` : "";
  const where = known(page.pid) ? `process ${page.pid} on ${page.host}${others}` : "this process";
  byId("when").textContent = `${where}, ${clock(at)}`;
  byId("body").className = "";
  say(verdict(page, all));
}

async function read(name) {
  const answer = await fetch(name, {cache: "no-store", signal: AbortSignal.timeout(3000)});
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return answer.json();
}

async function look() {
  if (!isPaused) {
    try {
      const [page, history] = await Promise.all([read("status.json"), hasHistory && read("history.json").catch(() => null)]);
      hasHistory = hasHistory && history !== null;  // an older service has none
      const now = Date.now() / 1000;
      if (!isPaused) {
        latest = {page, all: notice(page, history, now), at: now};
        render();
      }
    } catch (error) {
      say(["no answer", "bad"]);
      byId("body").className = "old";
    }
  }
  setTimeout(look, EVERY);
}

byId("pause").onclick = event => {
  isPaused = !isPaused;
  event.target.textContent = isPaused ? "Resume" : "Pause";
  event.target.setAttribute("aria-pressed", String(isPaused));
};

// The charts have the colours of the moment they were made.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  dropCharts(() => true);
  render();
});

look();
