// What the widget knows of a run, brought up to date by events; holds no elements.

const MAX_POINTS = 1000;
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
    losses: [],
    images: [],
    imagesStep: 0,
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
    etaSeconds: state.status === "running" ? (state.total - state.step) * state.seconds_per_step : NaN,
    losses: state.losses ?? [],
    images: state.validation?.images ?? [],
    imagesStep: state.validation?.step ?? 0,
  };
}

/** The view after an event; the old view is not changed. */
export function viewAfterEvent(view, kind, detail) {
  const known = view.run === detail.run ? view : { ...emptyView(), run: detail.run };
  return (EVENTS[kind] ?? ((same) => same))(known, detail);
}

const EVENTS = {
  progress(view, detail) {
    // A resumed run repeats the steps after its last checkpoint.
    const earlier = view.losses.filter((point) => point[0] < detail.step);
    return {
      ...view,
      status: "running",
      message: "",
      notice: noticeOf(view),
      step: detail.step,
      total: detail.total,
      loss: detail.loss,
      learningRate: detail.learning_rate,
      secondsPerStep: detail.seconds_per_step,
      etaSeconds: detail.eta_seconds,
      losses: thinOut([...earlier, [detail.step, detail.loss]]),
    };
  },
  notice(view, detail) {
    return { ...view, status: "running", message: "", notice: { level: detail.level, message: detail.message } };
  },
  validation(view, detail) {
    return { ...view, images: detail.images, imagesStep: detail.step };
  },
  finished(view, detail) {
    return { ...view, status: "finished", step: detail.step, total: Math.max(view.total, detail.step), etaSeconds: NaN };
  },
  failed(view, detail) {
    return { ...view, status: "failed", message: detail.message ?? "", etaSeconds: NaN };
  },
};

/** What a tracker or the hub said in this run; a run that starts anew has heard nothing yet. */
function noticeOf(view) {
  return view.status === "running" ? view.notice : NO_NOTICE;
}

/** Every second point, once there are too many to draw. */
function thinOut(points) {
  if (points.length <= MAX_POINTS) return points;
  return points.filter((_, index) => index % 2 === points.length % 2);
}
