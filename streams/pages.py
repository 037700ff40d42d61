"""What a worker answers over HTTP: is it alive, is it ready, what is its status, what is near a URL, and a page to look at.

The page shows text only through `textContent`, so a hostile URL is a string like any other.
"""

import time
from typing import Any

import msgspec
from faust.web import Request, Response, View

from streams.errors import BrokerError, ConfigError, StoreError
from streams.ownership import Ownership
from streams.pipeline import Pipeline
from streams.settings import Settings
from streams.status import Status, read_status
from streams.store import Store
from streams.urls import Canonicaliser

STATUS_KEPT_S = 1.0  # a page open in many windows asks the broker once a second, not once a window
NEAREST_MOST = 100

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>url2vec</title><style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .2rem .6rem .2rem 0; }
td { font-variant-numeric: tabular-nums; } input { font: inherit; width: 70%; }
</style></head><body><h1>url2vec</h1><p id="state" role="status">…</p>
<table><tbody id="numbers"></tbody></table>
<h2>Nearest URLs</h2><form id="ask"><label>URL <input id="url" name="url"></label> <button>Find</button></form>
<ol id="near"></ol>
<script>
const $ = id => document.getElementById(id);
const row = (name, value) => { const tr = document.createElement('tr');
  for (const text of [name, value]) { const td = document.createElement('td'); td.textContent = text; tr.append(td); }
  return tr; };
const show = v => v === null ? '–' : typeof v === 'number' ? v.toLocaleString() : String(v);
async function refresh() {
  try {
    const s = await (await fetch('api/status')).json();
    if (s.error) throw new Error(s.error);
    $('state').textContent = s.stalled ? 'Stalled.' : `${s.workers.length} worker(s), ${show(s.visits_per_second)} visits/s`;
    const rows = [['Lag, records', s.lag], ['Visits scored', s.visits_scored], ['Visits learned', s.visits_learned],
      ['Outcomes joined', s.outcomes_joined], ['Examples learned', s.examples_learned], ['Rejected', s.rejected],
      ['URLs known', s.urls], ['Latency p50 / p99, ms', show(s.latency_ms.p50) + ' / ' + show(s.latency_ms.p99)],
      ['Next URL among ten', s.next_url_hit_rate_at_10]];
    for (const [task, p] of Object.entries(s.progressive)) {
      rows.push([`AUC of ${task}: ours / River`, show(p.auc) + ' / ' + show(p.baseline_auc)]);
      rows.push([`Calibration error of ${task}`, show(p.ece) + ' / ' + show(p.baseline_ece)]);
    }
    for (const [task, d] of Object.entries(s.drift))
      rows.push([`Drifts of ${task}`, `${show(d.model)} / ${show(d.baseline)}` + (d.examples_since === null ? '' :
        ` (the last ${show(d.examples_since)} examples ago)`)]);
    for (const [task, weights] of Object.entries(s.experts))
      rows.push([`Experts of ${task}`, Object.entries(weights).filter(([, w]) => w >= 0.01).sort((a, b) => b[1] - a[1])
        .map(([name, w]) => `${name} ${w.toFixed(2)}`).join(', ')]);
    $('numbers').replaceChildren(...rows.map(([n, v]) => row(n, show(v))));
  } catch (e) { $('state').textContent = `No answer: ${e.message}`; }
  setTimeout(refresh, 1000);
}
$('ask').onsubmit = async e => { e.preventDefault();
  const found = await (await fetch('api/nearest?url=' + encodeURIComponent($('url').value))).json();
  $('near').replaceChildren(...(found.error ? [{url: found.error}] : found).map(n => {
    const li = document.createElement('li');
    li.textContent = n.url + (n.similarity === undefined ? '' : `  ${n.similarity.toFixed(3)}`); return li; })); };
refresh();
</script></body></html>
"""


def add_pages(app: Any, settings: Settings, store: Store, pipeline: Pipeline, ownership: Ownership) -> None:
    """Register the pages on the app's web server."""
    kept: tuple[float, Status] | None = None
    canonical = Canonicaliser(settings.urls).canonical

    async def status() -> Status:
        nonlocal kept
        if kept is None or time.monotonic() - kept[0] > STATUS_KEPT_S:
            kept = (time.monotonic(), await read_status(settings, store))
        return kept[1]

    def as_json(web: View, content: Any, code: int = 200) -> Response:
        return web.bytes(msgspec.json.encode(content), content_type="application/json", status=code)

    @app.page("/")  # type: ignore[untyped-decorator]
    async def front(web: View, request: Request) -> Response:
        return web.html(PAGE)

    @app.page("/healthz")  # type: ignore[untyped-decorator]
    async def healthz(web: View, request: Request) -> Response:
        return as_json(web, {"alive": True})

    @app.page("/readyz")  # type: ignore[untyped-decorator]
    async def readyz(web: View, request: Request) -> Response:
        ready = ownership.ready.is_set() and pipeline.model_is_sound
        return as_json(web, {"ready": ready}, 200 if ready else 503)

    @app.page("/api/status")  # type: ignore[untyped-decorator]
    async def api_status(web: View, request: Request) -> Response:
        try:
            return as_json(web, await status())
        except (StoreError, BrokerError, ConfigError) as error:
            return as_json(web, {"error": str(error)}, 503)

    @app.page("/api/nearest")  # type: ignore[untyped-decorator]
    async def api_nearest(web: View, request: Request) -> Response:
        url = request.query.get("url", "")
        try:
            k = min(int(request.query.get("k", "10")), NEAREST_MOST)
        except ValueError:
            return as_json(web, {"error": "k is a number"}, 400)
        url = canonical(url)
        try:
            near = await pipeline.in_compute_thread(pipeline.replica.learner.most_similar, [url], [], k)
        except KeyError:
            return as_json(web, {"error": f"{url} was never visited, nor anything like it"}, 404)
        return as_json(web, [{"url": other, "similarity": round(similarity, 4)} for other, similarity in near])

    @app.page("/metrics")  # type: ignore[untyped-decorator]
    async def metrics(web: View, request: Request) -> Response:
        try:
            return web.text(exposition(await status()), content_type="text/plain; version=0.0.4")
        except (StoreError, BrokerError, ConfigError) as error:
            return web.text(f"# {error}\n", status=503)


def exposition(status: Status) -> str:
    """The status in Prometheus' text format."""
    lines = []
    for name, kind, text, value in (
        ("url2vec_lag_records", "gauge", "Records in the input topics that are not checkpointed", status.lag),
        ("url2vec_visits_scored_total", "counter", "Visits scored", status.visits_scored),
        ("url2vec_visits_learned_total", "counter", "Visits that URL2vec learned from", status.visits_learned),
        ("url2vec_outcomes_joined_total", "counter", "Outcomes joined with visits", status.outcomes_joined),
        ("url2vec_outcomes_late_total", "counter", "Outcomes that came too late", status.outcomes_late),
        ("url2vec_examples_learned_total", "counter", "Settled pairs of visit and task", status.examples_learned),
        ("url2vec_rejected_total", "counter", "Records that could not be read", status.rejected),
        ("url2vec_duplicates_total", "counter", "Visits seen before", status.duplicates),
        ("url2vec_urls", "gauge", "URLs that have a vector", status.urls),
        ("url2vec_workers", "gauge", "Workers that report", len(status.workers)),
        ("url2vec_learning_share", "gauge", "Share of visits that URL2vec learned from", status.learning_share),
    ):
        lines += [f"# HELP {name} {text}.", f"# TYPE {name} {kind}", f"{name} {value}"]
    if status.drift:
        lines += ["# HELP url2vec_drifts_total Rises of a loss beyond chance.", "# TYPE url2vec_drifts_total counter"]
    for task, drifts in status.drift.items():
        for side, count in (("model", drifts.model), ("baseline", drifts.baseline)):
            lines.append(f'url2vec_drifts_total{{task="{task}",side="{side}"}} {count}')
    for name, text, field in (
        ("url2vec_staleness_ms", "Event time by which a worker's model was behind the others' lessons", "staleness_ms"),
        ("url2vec_lessons_behind", "Lessons of others that were not in a worker's model yet", "lessons_behind"),
        ("url2vec_looked_seconds", "Since a worker last looked for lessons of others", "looked_s"),
    ):
        lines += [f"# HELP {name} {text}.", f"# TYPE {name} gauge"]
        lines += [f'{name}{{worker="{worker.id}"}} {getattr(worker, field)}' for worker in status.workers]
    return "\n".join(lines) + "\n"
