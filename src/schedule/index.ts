export { describe } from './describe.ts';
export { type Expression, parseExpression } from './expression.ts';
export { nextOccurrence, occurrences } from './next.ts';
export {
  type Completed,
  type Plan,
  type PlannedRun,
  type PlanOptions,
  planTask,
  type SkippedRuns,
  type TaskSchedule,
} from './plan.ts';
export { type PreviewLine, preview, renderPreview } from './preview.ts';
export { ScheduleError, type ScheduleErrorCode } from './schedule-error.ts';
export { validateZone } from './zone.ts';
