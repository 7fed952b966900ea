// What the widget knows of a run, brought up to date by events; holds no elements.

const MAX_POINTS = 1000;
const BIN_WEIGHT = 0.05; // of a new step in the mean loss of a noise level
const NO_NOTICE = { level: "info", message: "" };

/** The state of a run before anything is known. */
export function emptyView() {
  return {
    run: "",
    status: "idle",
    message: "",
    notice: NO_NOTICE,
    step: 0,
    total: 0,
    loss: NaN,
    learningRate: NaN,
    secondsPerStep: NaN,
    etaSeconds: NaN,
    gradNorm: NaN,
    memory: NaN,
    memoryPlan: "",
    predictedPeak: NaN,
    predictedSeconds: NaN,
    curves: { loss: [], learningRate: [], gradNorm: [], memory: [] },
    lossByBin: {},
    heldOut: [],
    validations: [],
  };
}

/** The view of what GET /lumina2_trainer/runs/{run} answered. */
export function viewFromState(state) {
  return {
    ...emptyView(),
    run: state.run,
    status: state.status,
    message: state.message ?? "",
    notice: state.notice ?? NO_NOTICE,
    step: state.step,
    total: state.total,
    loss: state.loss ?? NaN,
    learningRate: state.learning_rate ?? NaN,
    secondsPerStep: state.seconds_per_step ?? NaN,
    etaSeconds: state.status === "running" ? (state.total - state.step) * (state.seconds_per_step ?? NaN) : NaN,
    gradNorm: state.grad_norm ?? NaN,
    memory: state.peak_memory_gib ?? NaN,
    memoryPlan: state.memory_plan ?? "",
    predictedPeak: state.predicted_peak_gib ?? NaN,
    predictedSeconds: state.predicted_seconds ?? NaN,
    curves: {
      loss: state.losses ?? [],
      learningRate: state.curves?.learning_rate ?? [],
      gradNorm: state.curves?.grad_norm ?? [],
      memory: state.curves?.peak_memory_gib ?? [],
    },
    lossByBin: state.loss_by_bin ?? {},
    heldOut: state.held_out ?? [],
    validations: state.validations ?? [],
  };
}

/** The view after an event; the old view is not changed. */
export function viewAfterEvent(view, kind, detail) {
  const known = view.run === detail.run ? view : { ...emptyView(), run: detail.run };
  return (EVENTS[kind] ?? ((same) => same))(known, detail);
}

const EVENTS = {
  // Of a run that waits for its caches, or, with a message, of one that cannot start.
  forecast(view, detail) {
    return {
      ...emptyView(),
      run: detail.run,
      status: "waiting",
      message: detail.message,
      total: detail.total ?? 0,
      memoryPlan: detail.memory_plan ?? "",
      predictedPeak: detail.predicted_peak_gib ?? NaN,
      predictedSeconds: detail.predicted_seconds ?? NaN,
    };
  },
  planned(view, detail) {
    return {
      ...runningView(view, detail),
      memory: NaN,
      memoryPlan: detail.memory_plan,
      predictedPeak: detail.predicted_peak_gib ?? NaN,
      predictedSeconds: detail.predicted_seconds,
      etaSeconds: NaN,
    };
  },
  progress(view, detail) {
    const values = {
      loss: detail.loss,
      learningRate: detail.learning_rate,
      gradNorm: detail.grad_norm,
      memory: detail.peak_memory_gib,
    };
    const curves = Object.entries(view.curves).map(([name, points]) => [name, addPoint(points, detail.step, values[name])]);
    return {
      ...runningView(view, detail),
      ...values,
      secondsPerStep: detail.seconds_per_step,
      etaSeconds: detail.eta_seconds,
      curves: Object.fromEntries(curves),
      lossByBin: addLosses(view.lossByBin, detail.loss_by_bin ?? {}),
    };
  },
  notice(view, detail) {
    return { ...view, status: "running", message: "", notice: { level: detail.level, message: detail.message } };
  },
  held_out(view, detail) {
    if (detail.weights !== "live") return view;
    return { ...view, heldOut: addPoint(view.heldOut, detail.step, detail.loss) };
  },
  validation(view, detail) {
    const { step, images, prompts, weights } = detail;
    const others = view.validations.filter((validation) => validation.step < step);
    return { ...view, validations: [...others, { step, images, prompts, weights }] };
  },
  finished(view, detail) {
    return { ...view, status: "finished", step: detail.step, total: Math.max(view.total, detail.step), etaSeconds: NaN };
  },
  stopped(view) {
    return { ...view, status: "stopped", etaSeconds: NaN };
  },
  failed(view, detail) {
    return { ...view, status: "failed", message: detail.message ?? "", etaSeconds: NaN };
  },
};

function runningView(view, { step, total }) {
  return { ...view, status: "running", message: "", notice: noticeOf(view), step, total };
}

/** What a tracker or the hub said in this run; a run that starts anew has heard nothing yet. */
function noticeOf(view) {
  return view.status === "running" ? view.notice : NO_NOTICE;
}

/** A curve with one more point. A resumed run repeats the steps after its last checkpoint. */
function addPoint(points, step, value) {
  return thinOut([...points.filter((point) => point[0] < step), [step, value]]);
}

/** The mean loss of each noise level, moved towards that of a new step. */
function addLosses(means, losses) {
  const moved = Object.entries(losses).map(([bin, loss]) => {
    const mean = means[bin];
    return [bin, mean === undefined ? loss : mean + BIN_WEIGHT * (loss - mean)];
  });
  return { ...means, ...Object.fromEntries(moved) };
}

/** Every second point, once there are too many to draw. */
function thinOut(points) {
  if (points.length <= MAX_POINTS) return points;
  return points.filter((_, index) => index % 2 === points.length % 2);
}
